"""A real PostgreSQL server of the tests' own, on a free port of 127.0.0.1 and in a new folder."""

from __future__ import annotations

import os
import pwd
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

# The end of its input tells the shell to tidy up, so that tests which are killed leave no server.
# Nothing depends on fsync: the tests kill clients, never the server.
SERVE = """
trap '' PIPE
trap 'cd / && rm -rf "$folder"' EXIT
{
    initdb --pgdata=data --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 \
        --no-sync &&
    pg_ctl --pgdata=data --log=log --wait --options="$options" start
} >out 2>&1 || { cat out log; exit 1; }
echo ready
read -r _
pg_ctl --pgdata=data --mode=immediate --wait stop >>out
"""


def programs() -> Path | None:
    """The folder of PostgreSQL's server programs: in PATH, or the newest where Debian puts them."""
    debian = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin"), key=lambda f: int(f.parts[-2]))
    wanted = ("initdb", "pg_ctl", "postgres")
    folders = [*map(Path, os.get_exec_path()), *reversed(debian)]
    return next((f for f in folders if all(os.access(f / name, os.X_OK) for name in wanted)), None)


@contextmanager
def running() -> Iterator[str]:
    """Run a server and give its URL. It ends with the block, or with this process at the latest."""
    found = programs()
    assert found, "there is no PostgreSQL server to run"
    folder = tempfile.mkdtemp(prefix="anytime-postgres-")
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    port = _free_port()
    with subprocess.Popen(
        ["/bin/sh", "-c", SERVE],
        cwd=folder,
        env={
            "PATH": f"{found}{os.pathsep}{os.environ['PATH']}",
            "folder": folder,
            "options": f"-p {port} -h 127.0.0.1 -c unix_socket_directories= -c fsync=off -c max_connections=200",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **account,
    ) as shell:
        assert shell.stdout
        answer = shell.stdout.readline()
        if answer != "ready\n":
            raise RuntimeError(f"PostgreSQL does not start: {answer}{shell.stdout.read()}")
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@contextmanager
def fresh(server: str) -> Iterator[str]:
    """Make an empty database in the server, give its URL, and drop it whoever still uses it."""
    name = f"anytime_{secrets.token_hex(8)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield server.removesuffix("postgres") + name
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
