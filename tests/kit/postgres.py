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
from psycopg import sql

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
            "options": f"-p {port} -h 127.0.0.1 -c unix_socket_directories= "
            "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c autovacuum=off -c jit=off "
            "-c max_connections=200",
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
    """An empty database in the server: gives its URL, and shuts out whoever still uses it at the end.

    To make a database and to drop it takes 0.1 s of CPU, so it is emptied instead and given again by
    another name: whoever comes back to the old one finds nothing.
    """
    left = _left.setdefault(server, [])
    with psycopg.connect(server, autocommit=True) as connection:
        if left:
            name = left.pop()
        else:
            connection.execute(f"CREATE DATABASE {(name := _name())}")
        try:
            yield server.removesuffix("postgres") + name
        finally:
            again = _name()
            try:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                    [name],
                )
                connection.execute(f"ALTER DATABASE {name} RENAME TO {again}")
                _empty(server.removesuffix("postgres") + again)
            except psycopg.Error:  # somebody has come back in the meantime
                for each in (name, again):
                    connection.execute(f"DROP DATABASE IF EXISTS {each} WITH (FORCE)")
            else:
                left.append(again)


_left: dict[str, list[str]] = {}
"""The empty databases of a server that nobody uses."""


def _name() -> str:
    return f"anytime_{secrets.token_hex(8)}"


def _empty(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$'"
        )
        for (schema,) in found.fetchall():
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        connection.execute("CREATE SCHEMA public")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
