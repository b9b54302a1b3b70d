"""Leases: one invocation at a time runs a thread, in whatever process.

A lease carries a token of the invocation that took it. Whatever that invocation writes stands only
while the lease still carries its token, so one that was given up for dead and wakes up changes
nothing.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from anytime_graph.checkpoints.store import Execute, Store

LEASE = 15.0
"""Seconds for which a lease holds unless it is renewed."""
GRACE = 2.0
"""Seconds without a node at work after which an invocation counts as gone. It gives no sign when its
caller keeps a stream and stops reading it."""

_PATIENCE = 0.5
"""Seconds that a cancelled invocation gets to leave."""


class ThreadBusy(RuntimeError):
    """Another invocation is running the thread. The thread is free when that one ends or pauses, or
    some seconds after its process dies."""


@dataclass(eq=False)
class Hold:
    """An invocation's right to a thread. life: what its nodes share. holder: as the lease has it.
    root: LangGraph's id of the thread. at_work: how many of its nodes are running; idle: since when none
    is. ended: the invocation is over, or counts as gone. free: its lease was dropped."""

    thread: str
    life: Hashable
    holder: str
    root: str | None = None
    at_work: int = 1
    idle: float = 0.0
    taken: bool = False
    ended: bool = False
    free: bool = False

    def gone(self) -> bool:
        return not self.at_work and (self.ended or time.monotonic() - self.idle > GRACE)


class Leases:
    """The leases of one open ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._me = f"{_process()} {secrets.token_hex(4)}"
        self._lock = threading.Lock()  # never held while the database is asked
        self._holds: dict[str, Hold] = {}
        _OPEN[self._me] = self

    def enter(self, thread: str, life: Hashable) -> Hold:
        """A node of the invocation `life` begins to work on the thread. Raises ThreadBusy if
        another invocation, here or elsewhere, is running it."""
        until = time.monotonic() + _PATIENCE
        while True:
            with self._lock:
                hold = self._holds.get(thread)
                if hold and hold.life == life and hold.taken and not hold.free:
                    hold.ended = False  # a sibling that was interrupted did not end it
                    hold.at_work += 1
                    return hold
                if hold is None or hold.gone():
                    token = secrets.token_hex(4)
                    hold = self._holds[thread] = Hold(thread, life, f"{self._me} {token}")
                    break
                if hold.life != life and hold.at_work and time.monotonic() > until:
                    raise ThreadBusy(f"thread {thread!r} is already running in this process")
            time.sleep(0.02)
        try:
            self._take(hold)
        except BaseException:
            self.forget(hold)
            raise
        hold.taken = True
        return hold

    def leave(self, hold: Hold, broken: bool = False) -> None:
        """The node has ended. broken: it was cancelled, and its invocation with it."""
        with self._lock:
            hold.at_work -= 1
            hold.idle = time.monotonic()
            hold.ended |= broken

    def end(self, belongs: Callable[[Hashable], bool]) -> None:
        """The invocation to which these lives belong is over: finished, paused or abandoned."""
        with self._lock:
            over = [h for h in self._holds.values() if not h.at_work and belongs(h.life)]
            for hold in over:
                hold.ended = True
        self.free()
        for hold in over:
            self.forget(hold)

    def free(self) -> None:
        """Drop the leases of invocations that are gone."""
        with self._lock:
            holds = [h for h in self._holds.values() if not h.at_work and h.gone() and not h.free]
            for hold in holds:
                hold.ended = hold.free = True
        for hold in holds:
            with self._store.transaction() as execute:
                self.drop(hold, execute)

    def forget(self, hold: Hold) -> None:
        with self._lock:
            if self._holds.get(hold.thread) is hold:
                del self._holds[hold.thread]

    def drop(self, hold: Hold, execute: Execute) -> None:
        """Within a write: free the thread. Forget the hold once the write is kept."""
        execute(
            "DELETE FROM leases WHERE thread = :thread AND holder = :holder",
            {"thread": hold.thread, "holder": hold.holder},
        )

    def renew(self, hold: Hold, execute: Execute) -> None:
        """Within a write, which stands only if the lease still carries the hold's token."""
        mine = execute(
            f"UPDATE leases SET expires = {self._store.clock} + {LEASE} "
            "WHERE thread = :thread AND holder = :holder RETURNING thread",
            {"thread": hold.thread, "holder": hold.holder},
        )
        if not mine:
            raise ThreadBusy(f"thread {hold.thread!r} was taken over by another invocation")

    def renew_all(self) -> None:
        """Renew the leases of threads at work."""
        with self._lock:
            holds = [hold for hold in self._holds.values() if hold.at_work]
        for hold in holds:
            with suppress(ThreadBusy), self._store.transaction() as execute:
                self.renew(hold, execute)

    def mine(self) -> str:
        """The name of a lease that this ledger holds until it is closed. By it others can tell whether
        calls of this ledger may be under way."""
        return f"calls of {self._me}"

    def live(self) -> None:
        """Take that lease, unless it is held."""
        self.enter(self.mine(), self)

    def lives(self, name: str, execute: Execute) -> bool:
        """Whether the ledger that has this lease may be at work."""
        rows = execute(
            f"SELECT holder FROM leases WHERE thread = :name AND expires > {self._store.clock}",
            {"name": name},
        )
        return bool(rows) and may_live(rows[0]["holder"], name)

    def close(self) -> None:
        """Drop all leases. Other ledgers of this process no longer wait for this one."""
        _OPEN.pop(self._me, None)
        with self._lock:
            holds = list(self._holds.values())
        for hold in holds:
            with self._store.transaction() as execute:
                self.drop(hold, execute)

    def lost(self, thread: str) -> bool:
        """Whether another invocation has taken a thread that is held here."""
        with self._lock:
            hold = self._holds.get(thread)
        if hold is None or not hold.taken:
            return False
        with self._store.reading() as execute:
            rows = execute("SELECT holder FROM leases WHERE thread = :thread", {"thread": thread})
        return bool(rows) and rows[0]["holder"] != hold.holder and self._holds.get(thread) is hold

    def holds(self, holder: str, thread: str) -> bool:
        """Whether the invocation behind this lease may still be running in this ledger."""
        with self._lock:
            hold = self._holds.get(thread)
            return hold is not None and hold.holder == holder and not hold.gone()

    def _take(self, hold: Hold) -> None:
        with self._store.transaction() as execute:
            rows = execute(
                f"SELECT holder, expires, {self._store.clock} AS now FROM leases "
                "WHERE thread = :thread",
                {"thread": hold.thread},
            )
            seen: dict[str, Any] = rows[0] if rows else {"holder": None, "expires": None}
            if rows and seen["expires"] > seen["now"] and may_live(seen["holder"], hold.thread):
                raise _busy(hold.thread, seen["holder"])
            taken = execute(
                "INSERT INTO leases (thread, holder, expires) "
                f"VALUES (:thread, :me, {self._store.clock} + {LEASE}) ON CONFLICT (thread) DO "
                f"UPDATE SET holder = :me, expires = {self._store.clock} + {LEASE} "
                "WHERE leases.holder = :holder AND leases.expires = :expires RETURNING thread",
                {**seen, "thread": hold.thread, "me": hold.holder},
            )
            if not taken:
                raise _busy(hold.thread, None)


_OPEN: weakref.WeakValueDictionary[str, Leases] = weakref.WeakValueDictionary()


def may_live(holder: str, thread: str) -> bool:
    """Whether a lease's holder may still be at work on the thread."""
    if len(parts := holder.split()) != 6 or not parts[0].isdecimal():
        return True
    pid, _, machine, started, ledger, _ = parts
    if machine == "-" or machine != _machine():
        return True
    if int(pid) == os.getpid():
        leases = _OPEN.get(f"{_process()} {ledger}")
        return leases is not None and leases.holds(holder, thread)
    return _started(int(pid)) == started


def _busy(thread: str, holder: str | None) -> ThreadBusy:
    pid, machine, *_ = (*(holder or "").split(), "", "")
    who = f"process {pid} on {machine}" if machine else "another process"
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
