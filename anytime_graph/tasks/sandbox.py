"""Runs a program that a model wrote, and checks what its functions return, in processes of their own.

    report = run(["def double(n): return n + n"], ["assert double(4) == 8"])
    report.results[0].holds

Three processes take part. The caller's starts the judge, which knows the checks and evaluates them.
The judge starts the worker, which knows only the program, runs it, and answers calls of its functions
with plain data. So a program can neither read what is expected of it nor change how it is compared; it
can only return values, and change the lists, dicts and sets that a call gives it. A worker that dies is
replaced for the next check.

The worker has limits, no rights and, where Linux allows namespaces, no network, no other process and
no file in sight but those of Python's standard library; see docs/benchmark.md. This module is run as
a script in the other two processes, so it imports only the standard library.
"""

from __future__ import annotations

import ast
import builtins
import glob
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Limits:
    """What one worker may use. cpu: seconds of processor time. wall: seconds for one call, and for
    loading the program. memory: bytes of address space. size: bytes of each file, and of all together
    where there is a folder for the program alone. message: bytes of one value that is returned.
    total: seconds for all checks."""

    cpu: int = 3
    wall: float = 10.0
    memory: int = 512 * 2**20
    size: int = 2**20
    message: int = 2**20
    total: int = 60


class Result(NamedTuple):
    """Whether a check holds; if not, what was called and what came."""

    holds: bool
    why: str


@dataclass(frozen=True)
class Report:
    """The results of the checks, in order. broken: why the program could not be loaded, or None."""

    results: tuple[Result, ...]
    broken: str | None = None


class NoSandbox(RuntimeError):
    """This machine offers no way to run a model's program under limits."""


@lru_cache(maxsize=4096)
def run(
    program: tuple[str, ...],
    checks: tuple[str, ...],
    setup: str = "",
    helpers: str = "",
    alias: tuple[str, str] | None = None,
    own: tuple[str, ...] = (),
    limits: Limits = Limits(),
) -> Report:
    """Load the parts of a program in one namespace, then evaluate each check.

    checks: statements. Those with an `assert` in them have a result; the others prepare them. setup:
    run before the checks, for each worker. helpers: code that the checks need, not the program's.
    alias: (a name in the checks, the name in the program). A name that neither of these defines is
    the program's; one that Python has is so only if it stands in `own`. Only the program is
    untrusted. Equal arguments are run once.

    Raises NoSandbox where programs cannot be run.
    """
    job = {
        "program": program,
        "checks": checks,
        "setup": setup,
        "helpers": helpers,
        "alias": alias,
        "own": own,
        "limits": asdict(limits),
    }
    return _run_judge(isolation(), job, limits.total)


# --- the caller's process -----------------------------------------------------------------------


class Isolation(NamedTuple):
    """How the judge is started. prefix: the command before it. jail: whether it makes a root of its
    own. nobody: whether the worker becomes the user `nobody`."""

    prefix: tuple[str, ...]
    jail: bool
    nobody: bool


_NOBODY = 65534
_SPACES = ("--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child")
_PYTHON = os.path.realpath(sys.executable)


def isolations() -> Iterator[Isolation]:
    """The ways to keep a program in, the strongest first."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if unshare := shutil.which("unshare"):
        own = () if root else ("--user", "--map-root-user")
        yield Isolation((unshare, *own, *_SPACES), True, root)
    if root:
        yield Isolation((), False, True)


@cache
def isolation() -> Isolation:
    """The strongest way that works here. Raises NoSandbox if there is none."""
    probe = {
        "program": ["def one(): return 1"],
        "checks": ["assert one() == 1"],
        "setup": "",
        "helpers": "",
        "alias": None,
        "own": (),
        "limits": asdict(Limits()),
    }
    for way in isolations():
        with suppress(subprocess.CalledProcessError):
            if _run_judge(way, probe, Limits.total).results == (Result(True, ""),):
                return way
    raise NoSandbox(
        "programs of models cannot be run here: Linux with seccomp is needed, and namespaces that "
        "unshare can make, or root and a Python that the user nobody can read"
    )


def _run_judge(way: Isolation, job: Mapping[str, Any], total: float) -> Report:
    """The judge's report. Checks that it did not come to do not hold."""
    checks = [check for check in job["checks"] if is_check(check)]
    job = {**job, "needs": _needs(_PYTHON)} if way.jail else job
    folder = tempfile.mkdtemp(prefix="sandbox-")
    try:
        place = [folder, *(["jail"] if way.jail else []), *(["nobody"] if way.nobody else [])]
        with subprocess.Popen(  # noqa: S603 - our own interpreter and this file
            [*way.prefix, *_script(_PYTHON), "judge", *place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
        ) as judge:
            try:
                out, _ = judge.communicate(json.dumps(job).encode(), total + 5)
            except subprocess.TimeoutExpired:
                _end_group(judge.pid)
                out, _ = judge.communicate()
            except BaseException:  # Ctrl-C ends them too
                _end_group(judge.pid)
                raise
    finally:
        _remove(folder)
    lines = [json.loads(line) for line in out.split(b"\n")[:-1]]
    broken = next((line for line in lines if isinstance(line, str)), None)
    results = [Result(*line) for line in lines if isinstance(line, list)]
    late = Result(False, broken or "it was not reached in the time there is")
    return Report((*results, *[late] * (len(checks) - len(results))), broken)


_ENVIRONMENT = {"PATH": "", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
"""All that the judge and the worker have. Sets have the same order in every run."""


def _script(python: str) -> list[str]:
    return [python, "-s", "-S", "-P", __file__]


@cache
def _needs(python: str) -> dict[str, Any]:
    """What an interpreter needs of the machine's files; see `_needed`."""
    told = subprocess.run(  # noqa: S603 - our own interpreter and this file
        [*_script(python), "needs"], stdout=subprocess.PIPE, env=_ENVIRONMENT, cwd="/", check=True
    )
    needs: dict[str, Any] = json.loads(told.stdout)
    return needs


def _remove(folder: str) -> None:
    """Remove a folder, however deep it is: what a folder in it holds is moved up into this one first.
    What cannot be removed is left."""
    apart, count = f"{os.urandom(16).hex()}-", itertools.count()
    with suppress(OSError), _descriptor(folder) as top:
        while names := os.listdir(top):
            for name in names:
                try:
                    os.unlink(name, dir_fd=top)
                except (IsADirectoryError, PermissionError):
                    with _descriptor(name, top) as inner:
                        for each in os.listdir(inner):
                            new = f"{apart}{next(count)}"
                            os.rename(each, new, src_dir_fd=inner, dst_dir_fd=top)
                    os.rmdir(name, dir_fd=top)
    with suppress(OSError):
        os.rmdir(folder)


@contextmanager
def _descriptor(folder: str, within: int | None = None) -> Iterator[int]:
    """A descriptor of a folder, which is no link to another."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def is_check(statement: str) -> bool:
    """Whether a statement has an `assert` in it."""
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(statement)))


# --- the judge's process ------------------------------------------------------------------------


class _Failed(Exception):
    """A request that the worker answered with an error, or not at all."""


@dataclass
class _Worker:
    """The worker, from the judge's side. late: how many workers were ended for the time they took."""

    job: Mapping[str, Any]
    start: Callable[[], tuple[int, socket.socket]]
    late: int = 0
    calls: list[str] = field(default_factory=list)
    _process: int = 0
    _socket: socket.socket | None = None
    _rest: bytes = b""

    def load(self) -> None:
        """Start a worker, if there is none, and load the program. Raises _Failed."""
        if self._socket is None:
            self._process, self._socket = self.start()
            self._rest = b""
            for part in self.job["program"]:
                self.ask("the program", {"program": part})

    @property
    def ended(self) -> bool:
        return self._socket is None

    def ask(self, what: str, request: Mapping[str, Any]) -> Any:
        """The worker's reply, as plain data. Raises _Failed, which says what happened."""
        limits = self.job["limits"]
        if self._socket is None:
            raise _Failed(f"{what} was not run")
        until = time.monotonic() + limits["wall"]
        try:
            self._socket.settimeout(limits["wall"])
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while b"\n" not in self._rest and len(self._rest) <= limits["message"]:
                self._socket.settimeout(max(1e-6, until - time.monotonic()))
                if not (piece := self._socket.recv(65536)):
                    raise _Failed(f"{what} {self._epitaph()}")
                self._rest += piece
            line, mark, self._rest = self._rest.partition(b"\n")
            if not mark:
                self.end()
                raise _Failed(f"{what} returned more than {limits['message']:,} bytes")
            reply = json.loads(line)
            error, value = reply.get("error"), reply.get("value")
        except TimeoutError:
            self.end()
            self.late += 1
            raise _Failed(f"{what} took more than {limits['wall']:g} seconds") from None
        except OSError:
            raise _Failed(f"{what} {self._epitaph()}") from None
        except (ValueError, AttributeError, RecursionError):
            self.end()
            raise _Failed(f"{what} wrote where only values are passed") from None
        if error is not None:
            raise _Failed(f"{what} raised {error!s:.300}")
        return value

    def _epitaph(self) -> str:
        """What ended the worker."""
        status = self.end()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            self.late += 1
            return f"took more than {self.job['limits']['cpu']} seconds of processor time"
        if os.WIFSIGNALED(status):
            return f"crashed ({_signal_name(os.WTERMSIG(status))})"
        return f"ended the process (exit code {os.WEXITSTATUS(status)})"

    def end(self) -> int:
        """End the worker. Returns its status, that of its own end if it had ended."""
        if self._socket is None:
            return 0
        self._socket.close()
        self._socket = None
        with suppress(ProcessLookupError):
            own = os.waitid(os.P_PID, self._process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if own is None:
                _end_group(self._process)
        return os.waitpid(self._process, 0)[1]


def _signal_name(number: int) -> str:
    """A signal's name. Those for real time have none but the first and the last."""
    known = number in {each.value for each in signal.Signals}
    return signal.Signals(number).name if known else f"signal {number}"


class _Remote:
    """Something of the program's in the worker: what a name stands for, or an object that was
    returned and is no plain data."""

    def __init__(self, worker: _Worker, target: str | int) -> None:
        self.__dict__.update(_worker=worker, _target=target)

    def _ask(self, what: str, **request: Any) -> Any:
        worker: _Worker = self._worker
        value = worker.ask(what, {**request, "of": self._target})
        try:
            return _unpacked(value, worker)
        except (ValueError, TypeError, RecursionError, KeyError, IndexError, AttributeError):
            raise _Failed(f"{what} returned what is no plain data") from None

    def __call__(self, *args: Any, **named: Any) -> Any:
        shown = [*map(repr, args), *(f"{name}={value!r}" for name, value in named.items())]
        what = f"{self!r}({_head(', '.join(shown), 200)})"
        came = self._ask(what, call=_packed(list(args)), named=_packed(named))
        given = [*args, *named.values()]
        try:
            value, changed = came
            for at, left in changed.items():
                _become(given[at], left)
        except (TypeError, ValueError, LookupError, AttributeError):
            raise _Failed(f"{what} returned what is no plain data") from None
        after = f" and left {_head(', '.join(map(repr, given)), 200)}" if changed else ""
        self._worker.calls.append(f"{what} returned {_head(repr(value), 200)}{after}")
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask(f"{self!r}.{name}", get=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask(f"{self!r}.{name}", set=name, value=_packed(value))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask(f"list({self!r})", items=True))

    def __repr__(self) -> str:
        return self._target if isinstance(self._target, str) else "<an object>"


def _become(value: Any, other: Any) -> None:
    """Make a list, dict or set hold what another one holds."""
    if isinstance(value, list):
        value[:] = other
    elif isinstance(value, dict | set):
        value.clear()
        value.update(other)


def _judge(folder: str, *how: str) -> None:
    """Evaluate a job's checks, and write a line with each result; before them why the program is
    broken, if it is."""
    job = json.load(sys.stdin)
    limits = job["limits"]
    _alone(limits["total"])
    os.umask(0o022)
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    nothing = os.open(os.devnull, os.O_RDWR)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(nothing, 1)  # what the checks print is no result
    if "jail" in how:
        _jailed(folder, job["needs"], limits["size"])
    else:
        os.chown(folder, _NOBODY, _NOBODY)
        os.chdir(folder)
    worker = _Worker(job, lambda: _forked(source, nothing, limits, how))
    try:
        space, broken = _space(worker)
        if broken is not None:
            told = json.dumps(f"the program cannot be loaded: {broken}")
            print(told, file=results, flush=True)
            return
        for result in _results(worker, space):
            print(json.dumps(result), file=results, flush=True)
    finally:
        worker.end()


def _space(worker: _Worker) -> tuple[dict[str, Any], str | None]:
    """The names that checks can use, with a new worker behind them; and why it failed, or None."""
    job = worker.job
    space: dict[str, Any] = {"__name__": "checks"}
    try:
        worker.load()
        exec(job["helpers"], space)  # noqa: S102 - code of the task, not of the program
        for name in job["alias"] or ():
            space[name] = _Remote(worker, job["alias"][1])
        _evaluate(job["setup"], space, worker)
    except _Failed as failure:
        return space, str(failure)
    except Exception as error:
        return space, f"the setup of its checks raised {type(error).__name__}: {error!s:.200}"
    return space, None


def _results(worker: _Worker, space: dict[str, Any]) -> Iterator[Result]:
    why = None
    for check in worker.job["checks"]:
        if worker.ended and worker.late < 2:
            fresh, why = _space(worker)
            space.update(fresh)
        if worker.ended:
            result = Result(False, why or "it was not run, as others took too much time")
        else:
            result = _outcome(check, space, worker)
        if is_check(check):
            yield result


def _outcome(check: str, space: dict[str, Any], worker: _Worker) -> Result:
    """What a check shows of its last call: "double(4) returned 9"."""
    worker.calls.clear()
    try:
        _evaluate(check, space, worker)
    except _Failed as failure:
        return Result(False, str(failure))
    except AssertionError:
        return Result(False, worker.calls[-1] if worker.calls else "nothing was called")
    except Exception as error:
        seen = f"{worker.calls[-1]}, and then " if worker.calls else ""
        return Result(False, f"{seen}the check raised {type(error).__name__}: {error!s:.200}")
    return Result(True, "")


def _evaluate(code: str, space: dict[str, Any], worker: _Worker) -> None:
    """Run a check's code. Of the names that it does not know, those before a dot may be modules of
    Python; all others are the program's."""
    tree = ast.parse(code)
    dotted = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or node.id in space:
            continue
        if node.id in worker.job["own"]:
            space[node.id] = _Remote(worker, node.id)
        elif not hasattr(builtins, node.id):
            module = id(node) in dotted and node.id in sys.stdlib_module_names
            space[node.id] = __import__(node.id) if module else _Remote(worker, node.id)
    exec(compile(tree, "<check>", "exec"), space)  # noqa: S102 - code of the task


def _alone(seconds: int) -> None:
    """Make sure that this process ends, also if the one that started it is gone."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.alarm(seconds)


def _forked(
    source: str, nothing: int, limits: Mapping[str, Any], how: Sequence[str]
) -> tuple[int, socket.socket]:
    """Start a worker. Returns its process and the socket to it."""
    ours, theirs = socket.socketpair()
    judge = os.getpid()
    if process := os.fork():
        theirs.close()
        return process, ours
    try:
        os.setsid()
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        theirs.set_inheritable(True)
        _drop(limits, how)
        if os.getppid() != judge:
            os._exit(1)
        own = [_PYTHON, "-s", "-S", "-P", "-c", source, "work", str(theirs.fileno())]
        os.execve(_PYTHON, own, _ENVIRONMENT)  # noqa: S606 - no shell is wanted
    finally:
        os._exit(127)


def _drop(limits: Mapping[str, Any], how: Sequence[str]) -> None:
    """Give up all rights, and take the limits."""
    import resource

    if sys.platform == "linux":
        control = _libc().prctl
        for capability in range(64 if "jail" in how else 0):
            control(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if "nobody" in how:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    if sys.platform == "linux":
        control(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        control(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _forbid()
    for name, soft, hard in (
        ("CPU", limits["cpu"], limits["cpu"] + 1),
        ("AS", limits["memory"], limits["memory"]),
        ("FSIZE", limits["size"], limits["size"]),
        ("NOFILE", 32, 32),
        ("CORE", 0, 0),
        ("MSGQUEUE", 0, 0),
        ("NPROC", 0, 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))


_CALLS = {
    "x86_64": (0xC000003E, 157, (29, 64, 68)),
    "aarch64": (0xC00000B7, 167, (194, 190, 186)),
}
"""By processor: what the kernel calls it, and the numbers of prctl and of shmget, semget and msgget."""


def _forbid() -> None:
    """Forbid the system calls by which a program could hold memory that no limit counts, or that
    outlives it (System V), or could outlive the judge itself. On processors whose calls are not known
    here, nothing is forbidden."""
    import ctypes

    machine = os.uname().machine
    if machine not in _CALLS or sys.maxsize < 2**32:
        return
    family, prctl, calls = _CALLS[machine]
    load, equal, above, end = 0x20, 0x15, 0x35, 0x06  # of a struct seccomp_data, by BPF
    steps = [(load, 0, 0, 4), (equal, 1, 0, family), (end, 0, 0, _EPERM), (load, 0, 0, 0)]
    steps += [(above, 0, 1, _OTHER_CALLS), (end, 0, 0, _EPERM)]
    for call in calls:
        steps += [(equal, 0, 1, call), (end, 0, 0, _EPERM)]
    steps += [(equal, 0, 3, prctl), (load, 0, 0, 16), (equal, 0, 1, _PR_SET_PDEATHSIG)]
    steps += [(end, 0, 0, _EPERM), (end, 0, 0, _ALLOWED)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _checked(_libc().prctl(_PR_SET_SECCOMP, 2, program, 0, 0))


_EPERM, _ALLOWED, _OTHER_CALLS = 0x00050001, 0x7FFF0000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_BIND, _REC, _NOSUID, _NODEV = 4096, 16384, 2, 4
_MOUNT_SETATTR = 442
"""The number of this system call, the same on all processors."""


def _jailed(folder: str, needs: Mapping[str, Any], size: int) -> None:
    """Make the folder the root of this process: nothing in it but what the interpreter needs, which cannot
    be written, and an empty folder of the program's own, which holds `size` bytes in 64 files."""
    import ctypes

    _mount("tmpfs", folder, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path in needs["paths"]:
        inside = folder + path
        if os.path.exists(inside):
            continue
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.isdir(path):
            os.mkdir(inside)
        else:
            open(inside, "x").close()
        _mount(path, inside, None, _BIND | _REC, None)
    for link, target in needs["links"].items():
        if not os.path.lexists(folder + link):
            os.makedirs(os.path.dirname(folder + link), exist_ok=True)
            os.symlink(target, folder + link)
    for path in needs["hidden"]:
        _mount("tmpfs", folder + path, "tmpfs", _NOSUID | _NODEV, "size=4k,mode=755")
    os.mkdir(f"{folder}/home")
    read_only = (ctypes.c_uint64 * 4)(1 | _NOSUID | _NODEV, 0, 0, 0)
    at = (ctypes.c_int(-100), folder.encode(), ctypes.c_uint(0x8000), ctypes.byref(read_only))
    _checked(_libc().syscall(ctypes.c_long(_MOUNT_SETATTR), *at, ctypes.c_size_t(32)))
    _mount(
        "tmpfs", f"{folder}/home", "tmpfs", _NOSUID | _NODEV, f"size={size},nr_inodes=64,mode=777"
    )
    os.chroot(folder)
    os.chdir("/home")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    import ctypes

    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _checked(_libc().mount(*texts[:3], ctypes.c_ulong(flags), texts[3]))


def _checked(result: int) -> None:
    import ctypes

    if result:
        raise OSError(ctypes.get_errno(), "no jail can be made")


def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


# --- what an interpreter needs, told by a process of its own --------------------------------------


_DATA = ("/etc/ld.so.cache", "/usr/lib/locale", "/usr/share/zoneinfo")
_PACKAGES = ("site-packages", "dist-packages")


def _needed() -> dict[str, Any]:
    """The paths of the machine that this interpreter needs: itself, the standard library, and the shared
    objects that these load; the links that lead there; and the folders in them that hold packages of
    others."""
    import ctypes

    library = [path for path in sys.path if os.path.exists(path)]
    for folder in library:
        for extension in glob.glob(f"{glob.escape(folder)}/*.so"):
            with suppress(OSError):
                ctypes.CDLL(extension)
    named = [sys.executable, *library, *_loaded(), *filter(os.path.exists, _DATA)]
    every = {os.path.realpath(path) for path in named}
    paths = sorted(p for p in every if not any(p.startswith(f"{other}/") for other in every))
    links: dict[str, str] = {}
    for path in named:
        links |= _links(path)
    return {
        "paths": paths,
        "links": links,
        "hidden": [p for path in paths for p in _packages(path)],
    }


def _packages(folder: str) -> Iterator[str]:
    for place, folders, _ in os.walk(folder):
        yield from (os.path.join(place, name) for name in folders if name in _PACKAGES)
        folders[:] = [name for name in folders if name not in _PACKAGES]


def _loaded() -> list[str]:
    """The shared objects in this process, by the paths where the loader found them."""
    import ctypes

    class Object(ctypes.Structure):
        _fields_ = (("address", ctypes.c_void_p), ("name", ctypes.c_char_p))

    found: list[str] = []

    def tell(each: Any, size: int, data: Any) -> int:
        found.append(os.fsdecode(each.contents.name or b""))
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Object), ctypes.c_size_t, ctypes.c_void_p)
    _libc().dl_iterate_phdr(kind(tell), None)
    return [path for path in found if os.path.isabs(path)]


def _links(path: str) -> dict[str, str]:
    """The symbolic links on the way to what stands at a path, and what they say."""
    parent, name = os.path.split(path)
    if not name:
        return {}
    here, found = os.path.join(os.path.realpath(parent), name), _links(parent)
    if os.path.islink(here):
        target = os.readlink(here)
        found |= {here: target} | _links(os.path.join(os.path.dirname(here), target))
    return found


# --- the worker's process -----------------------------------------------------------------------


def _work(descriptor: int) -> None:
    """Answer the judge's requests, in a namespace that the program fills."""
    space: dict[str, Any] = {"__name__": "program"}
    kept: list[Any] = []
    with open(descriptor, "rb", closefd=False) as requests:
        for line in requests:
            try:
                reply = {"value": _packed(_done(json.loads(line), space, kept), kept)}
                text = json.dumps(reply)
            except BaseException as error:  # a program may raise SystemExit
                text = json.dumps({"error": _described(error)})
            data = text.encode() + b"\n"
            while data:
                data = data[os.write(descriptor, data) :]


def _done(request: Mapping[str, Any], space: dict[str, Any], kept: list[Any]) -> Any:
    if "program" in request:
        exec(compile(request["program"], "<program>", "exec"), space)  # noqa: S102 - in its jail
        return None
    of = request["of"]
    if isinstance(of, str) and of not in space:
        raise NameError(f"the program does not define {of}")
    subject = space[of] if isinstance(of, str) else kept[of]
    if "call" in request:
        args, named = _unpacked(request["call"], kept), _unpacked(request["named"], kept)
        value = subject(*args, **named)
        before = [*_unpacked(request["call"], kept), *_unpacked(request["named"], kept).values()]
        after = enumerate(zip([*args, *named.values()], before, strict=True))
        changed = {at: left for at, (left, was) in after if type(left) in _CHANGED and left != was}
        return value, changed
    if "get" in request:
        return getattr(subject, request["get"])
    if "set" in request:
        setattr(subject, request["set"], _unpacked(request["value"], kept))
        return None
    return list(subject)


def _described(error: BaseException) -> str:
    """The error and the last line of the program that it went through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        text = f"{type(error).__name__}: {error!s:.250}"
    except BaseException:
        text = "an error that has no text"
    return text if line is None else f"{text} (line {line})"


# --- values as they pass between the two ---------------------------------------------------------

_MANY: dict[str, type[Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_CHANGED = (list, dict, set)
"""Those that a function can change in place."""
_TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}


def _packed(value: Any, kept: list[Any] | None = None) -> Any:
    """A value as JSON. What is no plain data stays with the worker, in `kept`."""
    if isinstance(value, _Remote):
        return {"kept": value._target}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name, kind in _MANY.items():
        if isinstance(value, kind):
            return {name: [_packed(item, kept) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_packed(k, kept), _packed(v, kept)] for k, v in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for name, known in _TYPES.items():
        if value is known:
            return {"type": name}
    if kept is None:
        raise _Failed(f"a {type(value).__name__} cannot be passed to the program")
    kept.append(value)
    return {"kept": len(kept) - 1}


def _unpacked(data: Any, there: _Worker | list[Any]) -> Any:
    """The value that JSON of `_packed` stands for. there: what a kept object is looked up in."""
    if not isinstance(data, dict):
        if isinstance(data, list):
            raise ValueError
        return data
    ((name, inside),) = data.items()
    if name in _MANY:
        return _MANY[name](_unpacked(item, there) for item in inside)
    if name == "dict":
        return {_unpacked(key, there): _unpacked(value, there) for key, value in inside}
    if name == "bytes":
        return bytes.fromhex(inside)
    if name == "complex":
        return complex(*inside)
    if name == "type":
        return _TYPES[inside]
    if isinstance(there, list):
        return there[inside]
    return _Remote(there, int(inside))


def _head(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 4]} ..."


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "judge":
        _judge(*words)
    elif role == "needs":
        print(json.dumps(_needed()))
    else:
        _work(int(words[0]))
