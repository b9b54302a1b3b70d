"""Programs of models run apart: what they return is judged, and what else they try costs their score."""

from __future__ import annotations

import os
import socket
import subprocess
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


def test_it_is_refused_where_nothing_keeps_a_program_in(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.isolation.cache_clear()
    monkeypatch.setattr(sandbox, "isolations", lambda: iter(()))
    with pytest.raises(sandbox.NoSandbox, match="Linux is needed"):
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
