"""Programs that models wrote run in a box: right ones pass, wrong and hostile ones do nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from lit_llm.errors import UserError
from lit_llm.evaluate.box.box import REASONS, Box, BoxError, Outcome, Program, confines, probe
from lit_llm.evaluate.box.inside.confine import Features, Limits
from tests.evaluate.box.hostile import HOSTILE, NAMES, RIGHT, SLOW, TESTS

SMALL = Limits(seconds=20.0, memory_bytes=256 << 20, disk_bytes=8 << 20)
SHORT = replace(SMALL, seconds=1.0)
FOUND = probe()
KINDS = {
    "namespaces": Features(namespaces=True, seccomp=True),
    "landlock": Features(landlock=FOUND.landlock, seccomp=True),
}


def here(kind: str) -> Features:
    features = KINDS[kind]
    if (features.namespaces and not FOUND.namespaces) or not confines(features):
        pytest.skip(f"this kernel offers no {kind}")
    if not FOUND.seccomp:
        pytest.skip("this kernel offers no seccomp")
    return features


@pytest.fixture(params=list(KINDS))
def box(request: pytest.FixtureRequest) -> Box:
    """A box that has one of the two ways to hide files."""
    return Box(limits=SMALL, features=here(request.param))


def run(box: Box, answer: str, tests: str = TESTS, names: tuple[str, ...] = NAMES) -> Outcome:
    outcome = box.run(Program(answer, tests, names))
    assert outcome.reason in REASONS
    return outcome


def processes_naming(folder: Path) -> list[str]:
    """Command lines of processes that name ``folder``, as all of a box do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in HOSTILE],
)
def test_a_hostile_program_fails_and_leaves_nothing(
    name: str, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, boxes = tmp_path / "home", tmp_path / "boxes"
    home.mkdir()
    boxes.mkdir()
    outside = home / "diary"
    outside.write_text("private")
    monkeypatch.setenv("BOX_SECRET", "private")
    monkeypatch.setattr(tempfile, "tempdir", str(boxes))
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        # A path of pytest may be longer than what the address of a socket can hold.
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            place = f"{folder}/socket"
            unix.bind(place)
            unix.listen()
            answer = HOSTILE[name].format(
                outside=outside, home=home, port=port, socket=place, parent=os.getpid()
            )
            outcome = run(Box(limits=SHORT, features=box.features), answer)
        for listening in (tcp, udp, unix):
            listening.setblocking(False)
        for listening in (tcp, unix):
            with pytest.raises(BlockingIOError):
                listening.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)
    assert not outcome.passed
    assert outcome.seconds < SHORT.seconds + 5
    assert outside.read_text() == "private" and outside.stat().st_mode & 0o600
    assert sorted(home.iterdir()) == [outside]
    assert not list(boxes.iterdir())
    assert not processes_naming(boxes)
    assert run(box, RIGHT).passed  # the box still works


def test_what_became_of_hostile_programs_is_said(box: Box) -> None:
    said = {
        name: run(box, HOSTILE[name]).reason
        for name in ("a_gigabyte_of_output", "leaves", "memory", "fork_bomb")
    }
    assert said == {
        "a_gigabyte_of_output": "output",
        "leaves": "ended",
        "memory": "raised",
        "fork_bomb": "raised",
    }


def test_right_and_wrong(box: Box) -> None:
    assert run(box, RIGHT) == Outcome("passed", "", pytest.approx(0, abs=1))
    wrong = run(box, "def f(x):\n    return x")
    assert (wrong.reason, wrong.detail) == ("failed", "AssertionError: ")
    raised = run(box, "def f(x):\n    raise ValueError('no\\n\\x1b[2J')")
    assert (raised.reason, raised.detail) == ("raised", "ValueError: no  [2J")
    assert run(box, "def f(x:").detail.startswith("SyntaxError")
    assert run(box, "").detail == "NameError: name 'f' is not defined"
    assert run(box, "x = '" + "a" * 100_000 + "'").reason == "failed"


def test_an_exception_that_a_test_expects(box: Box) -> None:
    tests = """
try:
    f(1)
except ValueError as error:
    assert str(error) == 'no'
else:
    raise AssertionError
"""
    assert run(box, "def f(x):\n    raise ValueError('no')", tests).passed
    assert not run(box, "def f(x):\n    raise KeyError('no')", tests).passed
    own = "class Mine(Exception):\n    pass\ndef f(x):\n    raise Mine('no', f)"
    assert run(box, own).detail.startswith("AnswerRaised: ('Mine', \"('no', <function f at")
    decoding = "try:\n    f(1)\nexcept UnicodeDecodeError as error:\n    assert error.start == 0"
    assert run(box, "def f(x):\n    b'\\xff'.decode()", decoding).passed
    several = run(box, "def f(x):\n    raise ExceptionGroup('both', [ValueError()])")
    assert several.detail.startswith("AnswerRaised: ('ExceptionGroup'")
    # An answer that is gone cannot be taken for one that raised.
    swallowing = "try:\n    f(1)\nexcept BaseException:\n    pass"
    assert run(box, "def f(x):\n    raise ValueError", swallowing).passed
    assert run(box, "import os\ndef f(x):\n    os._exit(0)", swallowing).reason == "ended"


def test_what_programs_may_use(box: Box) -> None:
    answer = """
import collections, ctypes, dataclasses, datetime, decimal, fractions, functools, hashlib, heapq
import itertools, json, math, random, re, statistics, string, sys, tempfile, typing, zoneinfo
@dataclasses.dataclass
class Point:
    x: "int"
def f(x):
    with open('notes', 'w') as file:
        file.write(str(x))
    with tempfile.TemporaryFile() as file:
        file.write(b'1')
    open('/dev/null', 'w').write('x')
    print('noted', hashlib.sha256(b'x').hexdigest())
    assert sys.stdin.read() == ''
    return Point(int(open('notes').read())).x + 1
"""
    assert run(box, answer) == Outcome("passed", "", pytest.approx(0, abs=1))


def test_values_come_back_as_they_are(box: Box) -> None:
    values = [
        None, True, 0, -1, 2**63, -(2**200), 1.5, -0.0, float("inf"), 2j, "é\ud800\n", b"\x00\xff",
        [], [[1], (2, "x")], (), (1,), {1, 2}, frozenset({(1, 2)}), {"a": {1: [2]}, (1, 2): None},
    ]  # fmt: skip
    tests = f"for value in {values!r}:\n    assert repr(f(value)) == repr(value)".replace(
        "inf", "float('inf')"
    )
    assert run(box, "def f(value):\n    return value", tests) == Outcome(
        "passed", "", pytest.approx(0, abs=1)
    )
    counted = "import collections\ndef f(x):\n    return collections.Counter(x)"
    assert run(box, counted, "assert f('aab') == {'a': 2, 'b': 1}").passed
    generated = run(box, "def f(x):\n    yield x")
    assert generated.detail == "TypeError: generator is not plain data"


def test_helpers_of_the_tests_are_not_the_answers(box: Box) -> None:
    program = Program(
        "def twice(x):\n    return 6\ndef f(x):\n    return 3",
        "assert twice(f(1)) == 6 and twice(2) == 4",
        NAMES,
        setup="def twice(x):\n    return 2 * x",
    )
    assert box.run(program).passed


def test_tests_are_confined_too(box: Box, tmp_path: Path) -> None:
    for tests, error in (
        (f"import os\nos.kill({os.getpid()}, 0)", "OSError: [Errno 38]"),
        (f"open({str(tmp_path / 'x')!r}, 'w')", "Error: "),
        ("import socket\nsocket.socket()", "OSError: [Errno 38]"),
    ):
        outcome = run(box, RIGHT, tests)
        assert outcome.reason == "failed" and error in outcome.detail
    assert not list(tmp_path.iterdir())


def test_many_at_once(box: Box) -> None:
    answers = [RIGHT, "def f(x):\n    return x", "import os\nos._exit(0)"] * 4
    done: list[int] = []
    outcomes = box.run_all([Program(answer, TESTS, NAMES) for answer in answers], 3,
                           lambda: done.append(1))  # fmt: skip
    assert [outcome.reason for outcome in outcomes] == ["passed", "failed", "ended"] * 4
    assert len(done) == 12


def test_no_feature_no_run() -> None:
    for features in (
        Features(),
        Features(seccomp=True),
        Features(namespaces=True, landlock=7),
        Features(landlock=2, seccomp=True),  # lets a program truncate any file
    ):
        with pytest.raises(UserError, match=r"--run_code: this machine offers box: .*limits: "):
            Box(features=features)
    everything = Box(features=Features(namespaces=True, landlock=7, seccomp=True))
    assert str(everything) == "box: namespaces, landlock 7, seccomp, limits"


def test_limits_alone_when_it_is_asked_for() -> None:
    box = Box(unsafe=True, limits=SMALL, features=Features())
    assert str(box) == "box: limits"
    assert run(box, RIGHT).passed
    short = Box(unsafe=True, limits=SHORT, features=Features())
    assert run(short, "while True:\n    pass").reason == "time"
    assert run(box, HOSTILE["memory"]).reason == "raised"
    assert run(box, HOSTILE["patches_equality"]).reason == "failed"


def test_a_feature_that_fails_is_an_error_of_the_box(tmp_path: Path) -> None:
    """Never a wrong answer, and never a run with less than what was printed."""
    outcome = masked(
        tmp_path,
        """
        box = Box(features=Features(namespaces=True, landlock=7, seccomp=True))
        box.run(Program("def f(x): return 1", "assert f(1)", ("f",)))
        """,
    )
    assert "BoxError: the box cannot be set up" in outcome.stderr and "unshare" in outcome.stderr


def test_a_kernel_without_namespaces_and_landlock(tmp_path: Path) -> None:
    outcome = masked(tmp_path, "print(asdict(probe()))\nBox()")
    assert outcome.stdout.strip() == str(
        {"namespaces": False, "landlock": 0, "seccomp": FOUND.seccomp}
    )
    assert "UserError: --run_code: this machine offers box: seccomp, limits" in outcome.stderr


def masked(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose kernel refuses namespaces and Landlock."""
    if not FOUND.seccomp:
        pytest.skip("this kernel offers no seccomp, with which the test masks")
    script = folder / "masked.py"
    script.write_text(
        textwrap.dedent(
            """
            from dataclasses import asdict
            from lit_llm.evaluate.box.box import Box, Program, probe
            from lit_llm.evaluate.box.inside import kernel, seccomp
            from lit_llm.evaluate.box.inside.confine import Features
            here = kernel.machine()
            off = {numbers[here] for name, numbers in kernel.NUMBERS.items()
                   if name == "unshare" or name.startswith("landlock")}
            kernel.drop_capabilities()
            seccomp.load(seccomp.build(here, sorted(set(range(470)) - off), {}))
            """
        )
        + textwrap.dedent(code)
    )
    return subprocess.run(
        [sys.executable, str(script)],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip


def test_a_box_that_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BoxError, match="cannot be set up"):
        Box(unsafe=True, features=Features()).run(Program("", "", ()))
    with pytest.raises(BoxError, match="probe failed"):
        probe()


def test_the_parent_is_killed_and_nothing_is_left(tmp_path: Path) -> None:
    if not confines(FOUND):
        pytest.skip("with limits alone a program may outlive who started it")
    code = (
        "import tempfile, os, sys, threading\n"
        "from lit_llm.evaluate.box.box import *\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "box = Box(limits=Limits(seconds=600))\n"
        "program = Program('while True: pass', '', ())\n"
        "threading.Thread(target=box.run, args=(program,), daemon=True).start()\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
                          ) as parent:  # fmt: skip
        while len([line for line in processes_naming(tmp_path) if "features" in line]) < 2:
            assert parent.poll() is None
        parent.kill()
    while processes_naming(tmp_path):
        pass


def test_no_process_is_left_to_be_waited_for() -> None:
    """An orphan would become the child of a process that asks for orphans."""
    if not confines(FOUND):
        pytest.skip("the test asks for orphans by a call of Linux")
    code = (
        "import os\n"
        "from lit_llm.evaluate.box.box import *\n"
        "from lit_llm.evaluate.box.inside.kernel import call\n"
        "call('prctl', 36, 1, 0, 0, 0)\n"
        "box = Box(limits=Limits(seconds=1))\n"
        "for answer in ('while True: pass', 'import os; os._exit(0)', 'x = 1'):\n"
        "    print(box.run(Program(answer, '', ())).reason)\n"
        "try:\n"
        "    print(os.waitpid(-1, os.WNOHANG))\n"
        "except ChildProcessError:\n"
        "    print('none')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
                          )  # fmt: skip
    assert done.stdout.split() == ["time", "ended", "passed", "none"]


def test_numbers_of_system_calls_are_the_kernels() -> None:
    import re

    from lit_llm.evaluate.box.inside import kernel, seccomp

    ours = {
        **seccomp.ALLOWED,
        **seccomp.CHECKED,
        **kernel.NUMBERS,
    }
    headers = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")
    for column, header in enumerate(map(Path, headers)):
        if not header.exists():
            pytest.skip(f"{header} is not installed")
        found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
        kernels = {name: int(number) for name, number in found}
        kernels.setdefault("newfstatat", kernels.get("fstatat", -1))
        assert {name: numbers[column] for name, numbers in ours.items()} == {
            name: kernels.get(name) for name in ours
        }


def test_a_message_of_another_shape_ends_the_answer() -> None:
    from lit_llm.evaluate.box.inside.values import decode, encode, send

    assert json.loads(json.dumps(encode([1, (2,)]))) == [1, {"tuple": [2]}]
    for wrong in ({"int": "x"}, {"what": 1}, {"a": 1, "b": 2}, {"set": [[1]]}, {"dict": [1]}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            decode(wrong)
    with pytest.raises(ValueError, match="in one message"):
        send(-1, "x" * (5 << 20))
