"""Leases: one invocation at a time runs a thread, in whatever process."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from anytime_graph.checkpoints.store import Execute, Store

LEASE = 15.0
"""Seconds for which a lease holds unless it is renewed."""


class ThreadBusy(RuntimeError):
    """Somebody else is running the thread. It ends with them, or some seconds after they die."""


@dataclass
class Hold:
    """A thread held here. life: what all nodes of the invocation that holds it share. at_work: how
    many of them are running."""

    life: object
    at_work: int = 0


class Leases:
    """The leases of one open ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._me = f"{_process()} {secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._holds: dict[str, Hold] = {}
        _OPEN[self._me] = self

    def enter(self, thread: str, life: object) -> Hold:
        """A node begins to work on the thread. life: the same object for all nodes of one
        invocation. Raises ThreadBusy if another invocation, here or elsewhere, is running it."""
        with self._lock:
            hold = self._holds.get(thread)
            if hold is None or hold.life is not life:
                if hold is not None and hold.at_work:
                    raise ThreadBusy(f"thread {thread!r} is already running in this process")
                self._take(thread)
                self._holds[thread] = hold = Hold(life)
            hold.at_work += 1
            return hold

    def leave(self, hold: Hold) -> None:
        with self._lock:
            hold.at_work -= 1

    def release(self, thread: str, execute: Execute) -> None:
        """The run has ended: others may have the thread at once."""
        with self._lock:
            self._holds.pop(thread, None)
        execute(
            "DELETE FROM leases WHERE thread = :thread AND holder = :me",
            {"thread": thread, "me": self._me},
        )

    def renew(self, execute: Execute, thread: str) -> None:
        """Within a write, which stands only if the lease is still ours."""
        mine = execute(
            f"UPDATE leases SET expires = {self._store.clock} + {LEASE} "
            "WHERE thread = :thread AND holder = :me RETURNING thread",
            {"thread": thread, "me": self._me},
        )
        if not mine:
            raise ThreadBusy(f"thread {thread!r} was taken over after its lease had expired")

    def renew_all(self) -> None:
        """Renew those of threads at work."""
        with self._lock:
            threads = [thread for thread, hold in self._holds.items() if hold.at_work]
        for thread in threads:
            with suppress(ThreadBusy), self._store.transaction() as execute:
                self.renew(execute, thread)

    def release_all(self) -> None:
        with self._store.transaction() as execute:
            execute("DELETE FROM leases WHERE holder = :me", {"me": self._me})

    def at_work(self, thread: str | None = None) -> bool:
        """Whether a node is working on the thread, or on any."""
        holds = [self._holds.get(thread)] if thread is not None else list(self._holds.values())
        return any(hold is not None and hold.at_work > 0 for hold in holds)

    def _take(self, thread: str) -> None:
        with self._store.transaction() as execute:
            rows = execute(
                f"SELECT holder, expires, {self._store.clock} AS now FROM leases "
                "WHERE thread = :thread",
                {"thread": thread},
            )
            seen: dict[str, Any] = rows[0] if rows else {"holder": None, "expires": None}
            held = bool(rows) and seen["expires"] > seen["now"]
            if held and may_live(seen["holder"], thread):
                raise _busy(thread, seen["holder"])
            taken = execute(
                "INSERT INTO leases (thread, holder, expires) "
                f"VALUES (:thread, :me, {self._store.clock} + {LEASE}) ON CONFLICT (thread) DO UPDATE "
                f"SET holder = :me, expires = {self._store.clock} + {LEASE} "
                "WHERE leases.holder = :holder AND leases.expires = :expires RETURNING thread",
                {"thread": thread, "me": self._me, **{k: seen[k] for k in ("holder", "expires")}},
            )
            if not taken:
                raise _busy(thread, None)


_OPEN: weakref.WeakValueDictionary[str, Leases] = weakref.WeakValueDictionary()


def _busy(thread: str, holder: str | None) -> ThreadBusy:
    who = "another process" if holder is None else "process {} on {}".format(*holder.split()[:2])
    return ThreadBusy(
        f"thread {thread!r} is being run by {who}; wait until it has ended, or {LEASE:g} s after it "
        "has died"
    )


def _process() -> str:
    """This process, so that another on the same machine can tell whether it still lives."""
    pid = os.getpid()
    return f"{pid} {socket.gethostname() or '?'} {_machine()} {_started(pid) or '-'}"


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            return f"{boot.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "-"


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def may_live(holder: str, thread: str) -> bool:
    """Whether a lease's holder may still be at work on the thread."""
    pid, _, machine, started, _ = holder.split()
    if machine == "-" or machine != _machine():
        return True
    if int(pid) == os.getpid():
        leases = _OPEN.get(holder)
        return leases is not None and leases.at_work(thread)
    return _started(int(pid)) == started
