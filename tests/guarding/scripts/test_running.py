"""A script that is run by us sees what a script that is run by Python sees."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frostline.errors import FrostlineError
from frostline.guarding.scripts import running as scripts
from frostline.guarding.scripts.running import End, Enough

LOOK_AROUND = '''"""A docstring."""
import json, sys
x: int = 3
plain = (str, int, type(None), list)
seen = {k: v if isinstance(v, plain) else type(v).__name__ for k, v in vars().copy().items()}
seen["argv"], seen["first"] = sys.argv, sys.path[0]
seen["main"] = sys.modules["__main__"].__dict__ is globals()
seen["spec_name"] = getattr(__spec__, "name", None)
print(json.dumps(seen, sort_keys=True))
'''


@pytest.fixture(autouse=True)
def _is_put_back() -> Iterator[None]:
    before = _shared()
    yield
    assert _shared() == before


def _shared() -> tuple[Any, ...]:
    streams = sys.stdout, sys.stderr, sys.stdin, sys.excepthook
    return sys.modules["__main__"], sys.argv, sys.path, list(sys.path), *streams


def _run(path: Path, *arguments: str) -> End:
    with scripts.borrowed(arguments):
        return scripts.run(scripts.load_file(str(path)))


def _write(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _python(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("place", ["train.py", "deep/er/train.py"])
def test_main_is_as_python_makes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    _write(tmp_path, LOOK_AROUND, place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert _run(Path(place), "--lr", "1").code == 0
    assert capsys.readouterr().out == _python(tmp_path, place, "--lr", "1")


@pytest.mark.parametrize(("name", "place"), [("pkg.run", "pkg/run.py"), ("pkg", "pkg/__main__.py")])
def test_a_module_is_as_python_dash_m_makes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    place: str,
) -> None:
    _write(tmp_path, "", "pkg/__init__.py")
    _write(tmp_path, LOOK_AROUND, place)
    monkeypatch.chdir(tmp_path)
    with scripts.borrowed(["a"]):
        assert scripts.run(scripts.load_module(name)).code == 0
    for module in [m for m in sys.modules if m.partition(".")[0] == "pkg"]:
        del sys.modules[module]
    assert capsys.readouterr().out == _python(tmp_path, "-m", name, "a")


@pytest.mark.parametrize(
    ("text", "code", "raised", "said"),
    [
        ("", 0, None, ""),
        ("import sys; sys.exit()", 0, None, ""),
        ("import sys; sys.exit(3)", 3, None, ""),
        ("import sys; sys.exit(-1)", 255, None, ""),
        ("import sys; sys.exit('no data')", 1, None, "no data\n"),
        ("raise SystemExit(True)", 1, None, ""),
        ("1 / 0", 1, "ZeroDivisionError", None),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt", None),
    ],
)
def test_every_way_of_ending(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    code: int,
    raised: str | None,
    said: str | None,
) -> None:
    assert _run(_write(tmp_path, text)) == End(code, raised)
    if said is not None:
        assert capsys.readouterr().err == said


FAILS = """
def train(step):
    try:
        {}["step"]
    except KeyError as error:
        raise RuntimeError("gone") from error

train(1)
"""


def test_a_traceback_reads_as_pythons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.distributed, once begun in this process, puts the rank in front of every line.
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    path = _write(tmp_path, FAILS)
    assert _run(path).raised == "RuntimeError"
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert capsys.readouterr().err == done.stderr


def test_the_scripts_own_hook_shows_its_exception(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "import sys\nsys.excepthook = lambda *what: print('mine', what[1])\nraise OSError('x')"
    assert _run(_write(tmp_path, text)).code == 1
    assert capsys.readouterr() == ("mine x\n", "")


def test_enough_passes_every_exception_of_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = Enough()
    monkeypatch.setattr(sys, "_stop", enough, raising=False)
    text = (
        "import sys\ntry:\n    try:\n        raise sys._stop\n"
        "    except Exception:\n        print('caught')\n    finally:\n        print('finally')\n"
        "except ValueError:\n    pass\n"
    )
    assert _run(_write(tmp_path, text)) == End(0, stopped=enough)
    assert capsys.readouterr().out == "finally\n"


def test_streams_that_the_script_replaced_are_flushed_and_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    text = f"import sys\nsys.stdout = open({str(log)!r}, 'w')\nprint('into the log')\n"
    text += "import atexit; atexit.register(sys.stdout.close)\n"
    _run(_write(tmp_path, text))
    print("here again")  # noqa: T201
    assert capsys.readouterr().out == "here again\n"
    assert log.read_text() == "into the log\n"


def test_a_thread_of_the_script_comes_to_its_end(tmp_path: Path) -> None:
    text = (
        "import threading, time\n"
        "def work():\n    time.sleep(0.2)\n    threading.current_thread().name = 'worked'\n"
        "thread = threading.Thread(target=work)\nthread.start()\n"
        "daemon = threading.Thread(target=threading.Event().wait, args=(60,), daemon=True)\n"
        "daemon.start()\n"
    )
    before = set(threading.enumerate())
    _run(_write(tmp_path, text))
    assert all(t.daemon for t in set(threading.enumerate()) - before)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nosuch.py", None, r"no such file: .*nosuch.py"),
        ("folder", "", "is a directory"),
        ("notes.txt", "these are words", r"notes.txt is no Python: .*line 1"),
        ("late.py", "x = 1\nfor\n", "late.py is no Python: invalid syntax, line 2"),
        ("model.pt", "PK\x03\x04\0\0", "is no Python: .*null"),
        ("nb.ipynb", "{}", "is a notebook"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    path = tmp_path / name
    if content == "":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(FrostlineError, match=said):
        _run(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module_at_all", "no module named no_such_module_at_all"),
        ("no_such.module", "cannot run the module no_such.module: No module named 'no_such'"),
        ("train.py", r"train\.py"),
        ("collections", "no module named collections.__main__|collections"),
        ("_struct", "no Python code"),
    ],
)
def test_a_module_that_cannot_be_run_is_refused(name: str, said: str) -> None:
    with scripts.borrowed([]), pytest.raises(FrostlineError, match=said):
        scripts.load_module(name)


def test_under_safe_path_no_folder_is_put_in_front(tmp_path: Path) -> None:
    script = _write(tmp_path, "import sys; print(sys.path)")
    code = (
        "import sys\nfrom frostline.guarding.scripts import running as scripts\n"
        "before = str(sys.path)\n"
        f"with scripts.borrowed([]):\n    scripts.run(scripts.load_file({str(script)!r}))\n"
        "print(before)"
    )
    said = _python(tmp_path, "-P", "-c", code).splitlines()
    assert said[0] == said[1]


def test_pickles_know_the_scripts_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "import pickle, inspect\nclass Thing:\n    x = 1\n"
        "print(type(pickle.loads(pickle.dumps(Thing()))) is Thing)\n"
        "print(inspect.getsource(Thing))\n"
    )
    assert _run(_write(tmp_path, text)).code == 0
    assert capsys.readouterr().out.startswith("True\nclass Thing:\n    x = 1\n")


def test_spawned_children_import_the_script_and_not_us(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (
        "import multiprocessing, os, sys\n"
        "def work():\n    print('frostline' in sys.modules, __name__, sys.argv[1:], flush=True)\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    child.start(); child.join(); sys.exit(child.exitcode)\n"
    )
    assert _run(_write(tmp_path, text), "--x") == End(0)
    assert capfd.readouterr().out == "False __mp_main__ ['--x']\n"
    assert os.getcwd()
