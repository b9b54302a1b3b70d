"""Programs of models run apart: what they return is judged, and what else they try costs their score."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from anytime_graph.tasks import sandbox
from anytime_graph.tasks.sandbox import Limits, Result, run

AMPLE = Limits(cpu=100, wall=200.0, memory=256 * 2**20, total=300)
"""Time that no test comes near, however slow and busy the machine is."""


def judged(program: str, *checks: str) -> list[Result]:
    report = run((program,), checks, limits=AMPLE)
    assert len(report.results) == len(checks)
    return list(report.results)


def test_checks_hold_or_say_what_was_called_and_what_came() -> None:
    program = "def double(n):\n    return n + n if n < 9 else n // 0\n"
    checks = [
        "assert double(4) == 8",
        "assert double(4) == 9",
        "assert double(n=9) == 18",
        "assert half(4) == 2",
        "assert [double(n) for n in range(3)] == [0, 2, 4]",
    ]
    assert judged(program, *checks) == [
        (True, ""),
        (False, "double(4) returned 8"),
        (
            False,
            "double(n=9) raised ZeroDivisionError: integer division or modulo by zero (line 2)",
        ),
        (False, "half(4) raised NameError: the program does not define half"),
        (True, ""),
    ]


def test_values_arrive_as_they_were_returned() -> None:
    program = (
        "import collections\ndef same(x): return x\ndef count(t): return collections.Counter(t)"
    )
    values = [
        "None",
        "True",
        "2.5",
        "'a\\ud800'",
        "b'x'",
        "3j",
        "(1,)",
        "[{1:(2,)}]",
        "{3}",
        "frozenset({4})",
        "10**40",
        "int",
    ]
    checks = [f"assert same({v}) == {v} and type(same({v})) is type({v})" for v in values]
    assert all(r.holds for r in judged(program, *checks, "assert count('aab') == {'a': 2, 'b': 1}"))


def test_objects_of_the_program_stay_there_and_can_be_passed_back() -> None:
    program = (
        "class Node:\n    def __init__(self, v): self.v, self.left = v, None\n"
        "def depth(n): return 1 + depth(n.left) if n else 0\n"
        "def upto(n):\n    yield from range(n)\n"
    )
    setup = "root = Node(1)\nroot.left = Node(2)"
    checks = (
        "assert depth(root) == 2",
        "assert root.left.v == 2",
        "assert list(upto(3)) == [0, 1, 2]",
    )
    assert run((program,), checks, setup).results == tuple([(True, "")] * 3)


def test_what_a_function_changes_in_place_is_seen() -> None:
    program = (
        "def order(items, seen=None, marks=None):\n    items.sort()\n    items[0].reverse()\n"
        "    if seen is not None: seen.add(7)\n    if marks is not None: del marks['a']\n"
    )
    state = ("rows, seen, marks = [[3, 4], [1, 2]], {5}, {'a': 1, 'b': (2,)}", "same = rows")
    checks = (
        "order(rows, seen, marks=marks)",
        "assert rows is same and rows == [[2, 1], [3, 4]] and type(rows[0]) is list",
        "assert (seen, marks) == ({5, 7}, {'b': (2,)})",
        "order(rows)\nassert rows == []",
    )
    assert run((program,), (*state, *checks)).results == (
        (True, ""),
        (True, ""),
        (False, "order([[2, 1], [3, 4]]) returned None and left [[1, 2], [3, 4]]"),
    )


@pytest.mark.parametrize("reply", ["[3, {}]", "[1]", "5", "[1, {7: []}]", "[1, {0: 5}]", "[1, 5]"])
def test_a_reply_that_is_no_reply_costs_its_score_only(reply: str) -> None:
    program = (
        f"import json, os, sys\ndef f(x):\n    reply = sys.modules['__main__']._packed({reply})\n"
        "    data = json.dumps({'value': reply}).encode() + b'\\n'\n    for d in range(3, 32):\n"
        "        try: os.write(d, data)\n        except OSError: pass\n"
    )
    (result,) = judged(program, "assert f([1]) == 2")
    assert not result.holds


def test_statements_between_checks_prepare_them() -> None:
    report = run(
        ("def up(n): return n + 1",),
        (
            "import math",
            "n = 4",
            "for k in range(3):\n    assert tried(k) == k + 1",
            "assert tried(n) == 6",
        ),
        alias=("tried", "up"),
    )
    assert report.results == ((True, ""), (False, "up(4) returned 5"))


def test_a_program_that_does_not_load_fails_every_check() -> None:
    report = run(("def f(:\n  pass",), ("assert f() == 1", "assert f() == 2"))
    assert report.broken
    assert "SyntaxError: invalid syntax" in report.broken
    assert report.results == ((False, report.broken),) * 2


def test_a_worker_that_ended_is_replaced_for_the_next_check() -> None:
    program = (
        "import os\ndef f(n):\n    if n == 1: os._exit(0)\n    if n == 2: os.abort()\n    return n"
    )
    checks = [f"assert f({n}) == {n}" for n in range(4)]
    assert judged(program, *checks) == [
        (True, ""),
        (False, "f(1) ended the process (exit code 0)"),
        (False, "f(2) crashed (SIGABRT)"),
        (True, ""),
    ]


HOSTILE = {
    "computes for ever": ("def f():\n    while True: pass", "took more than 1 seconds"),
    "waits for ever": ("import time\ndef f(): time.sleep(1000)", "took more than 1 seconds"),
    "takes all memory": ("def f(): return len(bytearray(2**40))", "MemoryError"),
    "collects memory": (
        "def f():\n    x = []\n    while True: x.append('y' * 2**20)",
        "MemoryError",
    ),
    "returns too much": ("def f(): return 'x' * 2**22", "returned more than 1,048,576 bytes"),
    "prints for ever": ("def f():\n    while True: print('x' * 2**16)", "took more than 1 sec"),
    "forks": ("import os\ndef f():\n    while True: os.fork()", "BlockingIOError"),
    "starts threads": (
        "import threading\ndef f():\n    while True: threading.Thread(target=f).start()",
        "can't start new thread",
    ),
    "daemonizes": (
        "import subprocess\ndef f(): subprocess.Popen(['/usr/bin/sleep', '1000'])",
        "raised ",
    ),
    "exits": ("import sys\ndef f(): sys.exit(0)", "SystemExit"),
    "exits at once": ("import os\nos._exit(0)", "ended the process (exit code 0)"),
    "nests a value": (
        "def f():\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
        "RecursionError",
    ),
    "returns what is equal to all": (
        "class Yes:\n    def __eq__(self, other): return True\ndef f(): return Yes()",
        "returned <an object>",
    ),
    "reports success": (
        "import os, sys\ndef f():\n    for d in range(32):\n        try: os.write(d, b'[true, \"\"]\\n')\n"
        "        except OSError: pass",
        "wrote where only values are passed",
    ),
    "changes how values are compared": (
        "import builtins, json, sys\ndef f():\n    builtins.AssertionError = ValueError\n"
        "    builtins.exec = builtins.compile = lambda *a: None\n"
        "    m = sys.modules['__main__']\n    m.Result = m._outcome = lambda *a: (True, '')\n    return 2",
        "f() returned 2",
    ),
    "looks for what is expected": (
        "import gc, os\ndef f():\n    wanted = ''.join(['an ot', 'ter'])\n"
        "    seen = [str(o) for o in gc.get_objects() if wanted in str(o)]\n"
        "    return seen or (os.listdir('/proc') if os.path.exists('/proc') else 'nothing')",
        "f() returned 'nothing'",
    ),
}


TIMED: dict[str, dict[str, int]] = {
    "computes for ever": {"cpu": 1},
    "prints for ever": {"cpu": 1},
    "waits for ever": {"wall": 1},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_program_costs_its_score_only(what: str) -> None:
    program, why = HOSTILE[what]
    limits = replace(AMPLE, **TIMED.get(what, {}))
    (result,) = run((program,), ("assert f() == 'an otter'",), limits=limits).results
    assert not result.holds
    assert why in result.why


def test_a_reply_that_comes_bit_by_bit_takes_no_longer_than_any_other() -> None:
    program = (
        "import os, time\ndef f(n):\n    while n:\n        for d in range(3, 32):\n"
        "            try: os.write(d, b'x')\n            except OSError: pass\n"
        "        time.sleep(0.1)\n    return n"
    )
    checks = ("assert f(1) == 1", "assert f(0) == 0")
    found = run((program,), checks, limits=replace(AMPLE, wall=4.0)).results
    assert found == ((False, "f(1) took more than 4 seconds"), (True, ""))


def test_no_signal_reaches_those_who_started_it() -> None:
    program = (
        "import os, signal\ndef f(pid):\n    tried = []\n"
        "    for p in (pid, os.getppid(), 1):\n"
        "        try: os.kill(p, signal.SIGKILL)\n"
        "        except OSError as error: tried.append(type(error).__name__)\n    return tried"
    )
    check = f"assert 'ProcessLookupError' in f({os.getpid()}) and f({os.getppid()})"
    # The kernel drops a signal to the first process of a namespace from within it, or forbids it.
    assert judged(program, check, "assert len(f(1)) >= 0") == [(True, ""), (True, "")]
    everyone = "import os, signal\ndef f(): os.kill(-1, signal.SIGKILL)"
    assert not judged(everyone, "assert f() == 1")[0].holds


def test_nothing_is_written_outside_of_the_programs_own_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    program = (
        "import os\ndef write(path):\n"
        "    try:\n        with open(path, 'w') as f: f.write('x')\n        return 'written'\n"
        "    except OSError as error: return type(error).__name__\n"
        "def fill():\n    n = 0\n    try:\n"
        "        while True:\n            with open(f'file{n}', 'w') as f: f.write('x' * 1000)\n"
        "            n += 1\n    except OSError: return n\n"
    )
    places = [str(tmp_path / "x"), "/x", "/tmp/x", "/usr/x", "/dev/shm/x", os.__file__]
    checks = [f"assert write({place!r}) != 'written'" for place in places]
    checks += ["assert write('x') == 'written'", "assert write('/home/y') == 'written'"]
    checks += ["assert list_() == ['x', 'y']", "assert fill() < 64"]
    program += "def list_(): return sorted(os.listdir('.'))\n"
    assert [r.why for r in judged(program, *checks)] == [""] * len(checks)
    assert not list(tmp_path.iterdir())


def test_no_network_is_in_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        program = (
            "import socket\ndef f(port):\n"
            "    try: socket.create_connection(('127.0.0.1', port), 1)\n"
            "    except OSError as error: return type(error).__name__\n"
        )
        (result,) = judged(program, f"assert f({server.getsockname()[1]}) is not None")
        assert result.holds, result.why
        with pytest.raises(BlockingIOError):
            server.accept()


def test_neither_keys_nor_files_of_the_user_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    program = (
        "import os\ndef keys(): return [k for k in os.environ if 'KEY' in k]\n"
        "def there(path): return os.path.exists(path)\n"
        "def who(): return [os.getuid() != 0 or not list_root(), os.listdir('.')]\n"
        "def list_root():\n    try: os.mkdir('/new')\n    except OSError: return False\n    return True\n"
    )
    homes = [f"assert not there({path!r})" for path in (str(Path.cwd()), "/etc/passwd", "/proc/1")]
    found = judged(program, "assert keys() == []", "assert who() == [True, []]", *homes)
    assert [r.why for r in found] == [""] * 5


def pythons() -> list[str]:
    """The interpreters of this machine that can run a judge."""
    found = {sandbox._PYTHON}
    for path in ("/usr/bin/python3", "/usr/local/bin/python3", "/opt/py313/bin/python3"):
        ask = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if os.path.exists(path) and subprocess.run(ask, check=False).returncode == 0:
            found.add(os.path.realpath(path))
    return sorted(found)


IN_SIGHT = """
import os, sys
LIBRARY = os.path.dirname(os.__file__)
DATA = ('/home', '/usr/lib/locale', '/usr/share/zoneinfo')

def others():
    found = []
    for folder, _, files in os.walk('/'):
        known = folder.startswith((LIBRARY, *DATA)) and not folder.endswith('-packages')
        found += [os.path.join(folder, f) for f in files if not known and '.so' not in f]
    return [path for path in found if path != os.path.realpath(sys.executable)]

def broken():
    names = [e.split('.')[0] for e in os.listdir(LIBRARY + '/lib-dynload') if '_test' not in e]
    failed = []
    for name in ['ctypes', 'json', 'decimal', *names]:
        try: __import__(name)
        except ImportError as error: failed.append(str(error))
    return failed

def here(): return os.path.dirname(os.path.realpath(sys.executable))

def berlin():
    import zoneinfo
    return str(zoneinfo.ZoneInfo('Europe/Berlin'))
"""


@pytest.mark.parametrize("python", pythons())
def test_only_what_the_interpreter_needs_is_seen(
    monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    if not sandbox.isolation().jail:
        pytest.skip("there are no namespaces here")
    monkeypatch.setattr(sandbox, "_PYTHON", python)
    # Together the modules take more memory than a program may.
    limits = replace(AMPLE, memory=2**31)
    checks = ["assert others() == []", "assert broken() == []"]
    checks += [f"assert {python!r}.startswith(here())"]
    if os.path.exists("/usr/share/zoneinfo/Europe/Berlin"):
        checks += ["assert berlin() == 'Europe/Berlin'"]
    found = run((IN_SIGHT,), tuple(checks), helpers=f"# {python}", limits=limits).results
    assert [result.why for result in found] == [""] * len(checks)


def test_packages_within_the_standard_library_are_hidden(tmp_path: Path) -> None:
    """Wherever they lie in what is shown, and whatever lies in them."""
    inner = tmp_path / "lib" / "python" / "site-packages" / "other" / "site-packages"
    inner.mkdir(parents=True)
    (tmp_path / "lib" / "dist-packages").mkdir()
    (tmp_path / "lib" / "packages").mkdir()
    hidden = sorted(sandbox._packages(str(tmp_path)))
    assert hidden == [f"{tmp_path}/lib/dist-packages", f"{tmp_path}/lib/python/site-packages"]


def test_links_on_the_way_to_a_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "lib.so.1.2").touch()
    (tmp_path / "real" / "deep" / "lib.so").symlink_to("lib.so.1.2")
    (tmp_path / "first").symlink_to(f"{tmp_path}/second")
    (tmp_path / "second").symlink_to("real")
    assert sandbox._links(f"{tmp_path}/first/deep/../deep/lib.so") == {
        f"{tmp_path}/first": f"{tmp_path}/second",
        f"{tmp_path}/second": "real",
        f"{tmp_path}/real/deep/lib.so": "lib.so.1.2",
    }


OUTSIDE_OF_LIMITS = """
import ctypes
c = ctypes.CDLL(None, use_errno=True)
def shared(): return c.shmget(0, ctypes.c_size_t(4096), 0o1600)
def queued(): return c.msgget(0, 0o1600)
def counted(): return c.semget(0, 1, 0o1600)
def posix(): return c.syscall(240, b'other', 0o102, 0o600, None)
def outlives(): return c.prctl(1, 0, 0, 0, 0)
def dies():
    number = ctypes.c_int()
    c.prctl(2, ctypes.byref(number), 0, 0, 0)
    return number.value
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of its system calls")
def test_no_memory_is_held_past_the_limits_and_nothing_outlives_the_judge() -> None:
    refused = ("shared", "queued", "counted", "posix", "outlives")
    checks = [*(f"assert {name}() == -1" for name in refused), "assert dies() == 9"]
    assert [r.why for r in judged(OUTSIDE_OF_LIMITS, *checks)] == [""] * 6


def test_any_signal_that_ends_the_worker_is_told() -> None:
    program = "import os\ndef f(n): os.kill(os.getpid(), n)"
    found = [r.why for r in judged(program, *(f"assert f({n}) == 1" for n in (7, 34, 40, 64)))]
    told = ["SIGBUS", "SIGRTMIN", "signal 40", "SIGRTMAX"]
    assert found == [
        f"f({n}) crashed ({name})" for n, name in zip((7, 34, 40, 64), told, strict=True)
    ]


def test_what_checks_and_their_setup_print_is_no_result() -> None:
    loud = "print('[true, \"\"]')"
    report = run(("def f(): return 1",), (loud, "assert f() == 2"), f"{loud}\nprint('hello')")
    assert report == sandbox.Report((Result(False, "f() returned 1"),))


def test_a_name_that_python_has_is_the_programs_if_it_is_said_to_be() -> None:
    program = (
        "class Line:\n    def put(self, n): return n\nqueue = Line()\ndef sum(a, b): return a - b"
    )
    checks = ("assert sum(9, 4) == 5", "assert queue.put(3) == 3")
    assert run((program,), checks, own=("sum", "queue")).results == ((True, ""),) * 2
    (result,) = run(("x = 1",), ("assert sum((1, 2)) == 3",), own=("sum",)).results
    assert result.why == "sum((1, 2)) raised NameError: the program does not define sum"


# --- as root without namespaces ------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[sandbox.Isolation]:
    way = sandbox.Isolation((), False, True)
    monkeypatch.setattr(sandbox, "isolations", lambda: iter((way,)))
    for python in pythons() if os.geteuid() == 0 else ():
        monkeypatch.setattr(sandbox, "_PYTHON", python)
        sandbox.isolation.cache_clear()
        with suppress(sandbox.NoSandbox):
            assert sandbox.isolation() == way
            break
    else:
        pytest.skip("root is needed, and a Python that nobody can read")
    yield way
    sandbox.isolation.cache_clear()


def test_a_program_ends_with_its_judge(
    monkeypatch: pytest.MonkeyPatch, nobody: sandbox.Isolation
) -> None:
    program = (
        "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n"
        "def me(): return os.getpid()\ndef wait(): time.sleep(1000)"
    )
    told: list[str] = []

    def interrupted(judge: subprocess.Popen[bytes], job: bytes, *args: object) -> None:
        assert judge.stdin
        assert judge.stdout
        judge.stdin.write(job)
        judge.stdin.close()
        told.append(json.loads(judge.stdout.readline())[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run((program,), ("assert me() == 0", "assert wait() == 0"), limits=AMPLE)
    process = int(told[0].removeprefix("me() returned "))
    try:
        watched = os.pidfd_open(process)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([watched], [], [], 10)
    if not ended:
        os.kill(process, 9)
    os.close(watched)
    assert ended


def test_folders_of_any_depth_are_removed(
    monkeypatch: pytest.MonkeyPatch, nobody: sandbox.Isolation
) -> None:
    made: list[str] = []
    make = tempfile.mkdtemp

    def watched(*args: str, **named: str) -> str:
        made.append(make(*args, **named))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", watched)
    program = (
        "import os\ndef f():\n    os.symlink('/etc', 'link')\n    for n in range(3000):\n"
        "        open('x', 'w').close()\n        os.mkdir('d')\n        os.chdir('d')\n"
        "    os.chmod('.', 0)\n    return 1"
    )
    assert [tuple(r) for r in judged(program, "assert f() == 1")] == [(True, "")]
    assert made
    assert not any(map(os.path.exists, made))


def test_it_is_refused_where_nothing_keeps_a_program_in(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.isolation.cache_clear()
    monkeypatch.setattr(sandbox, "isolations", lambda: iter(()))
    with pytest.raises(sandbox.NoSandbox, match="Linux with seccomp is needed"):
        sandbox.isolation()


def test_a_python_that_does_not_run_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.isolation.cache_clear()
    monkeypatch.setattr(sandbox, "_PYTHON", shutil.which("false"))
    with pytest.raises(sandbox.NoSandbox):
        sandbox.isolation()


def test_an_interrupted_caller_ends_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    way = sandbox.isolation()
    ended: list[int] = []
    end = sandbox._end_group

    def watched(group: int) -> None:
        ended.append(group)
        end(group)

    def interrupted(judge: subprocess.Popen[bytes], *args: object) -> None:
        assert judge.poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "_end_group", watched)
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sandbox._run_judge(way, {"checks": []}, 1)
    with pytest.raises(ChildProcessError):
        os.waitpid(ended[0], 0)
