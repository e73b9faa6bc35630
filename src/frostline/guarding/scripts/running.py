"""Run a script or a module as ``__main__``, as ``python`` would, with somebody watching.

The script must not notice: ``sys.argv``, ``sys.path``, ``__file__``, ``__spec__`` and ``__main__``
are as it knows them, so that pickles, ``multiprocessing`` (spawn and fork) and imports of its
neighbours work. What it does not get is a process of its own: torch is imported before it starts.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from frostline.errors import FrostlineError

INTERRUPTED = 130


class Enough(BaseException):
    """Ends a script from within a step; no ``except Exception`` of the script may hold it."""


@dataclass(frozen=True)
class Script:
    """Code that is ready to run as ``__main__``.

    Attributes:
        code: compiled.
        argv0: what it will find in ``sys.argv[0]``.
        attributes: what ``__main__`` carries beside the usual.
    """

    code: CodeType
    argv0: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class End:
    """How a script ended.

    Attributes:
        code: its exit code, as the shell would see it.
        raised: the class name of an exception that nobody caught, or None.
        stopped: what ended it early from within a step, or None.
    """

    code: int
    raised: str | None = None
    stopped: Enough | None = None


@contextmanager
def borrowed(arguments: Sequence[str]) -> Iterator[None]:
    """Lend the script what it shares with us, and put all of it back.

    Args:
        arguments: the script's own, without its name.
    """
    shared = sys.argv, sys.path, list(sys.path), sys.stdout, sys.stderr, sys.stdin, sys.excepthook
    main = sys.modules["__main__"]
    sys.argv = ["", *arguments]
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        sys.argv, sys.path, before, *streams, sys.excepthook = shared
        sys.path[:] = before
        sys.stdout, sys.stderr, sys.stdin = streams


def load_file(name: str) -> Script:
    """Compile a file, and put its folder where imports look first.

    Raises:
        FrostlineError: no such file, a directory, or no Python.
    """
    path = Path(name)
    if not path.is_file():
        raise FrostlineError(_no_file(path))
    if path.suffix == ".ipynb":
        raise FrostlineError(
            f"{name} is a notebook. Make a script of it (jupyter nbconvert --to script {name}), or "
            "write `with fl.guard(model):` around the training in it"
        )
    full = os.path.abspath(path)
    _first_on_path(os.path.dirname(os.path.realpath(path)))
    loader = importlib.machinery.SourceFileLoader("__main__", full)
    with io.open_code(full) as source:
        code = _compiled(source.read(), name, full)
    own = {"__file__": full, "__cached__": None, "__loader__": loader}
    return Script(code, name, {**own, "__spec__": None, "__package__": None})


def load_module(name: str) -> Script:
    """Find what ``python -m name`` would run.

    Raises:
        FrostlineError: there is no such module, or it cannot be run.
    """
    _first_on_path(os.getcwd())
    spec = _spec(name)
    loader = spec.loader
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None  # type: ignore[union-attr]
    if code is None or spec.origin is None:
        raise FrostlineError(f"module {name} has no Python code that could be run")
    own = {"__file__": spec.origin, "__cached__": spec.cached, "__loader__": loader}
    return Script(code, spec.origin, {**own, "__spec__": spec, "__package__": spec.parent})


def _spec(name: str) -> importlib.machinery.ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise FrostlineError(f"cannot run the module {name}: {error}") from error
    if spec is None:
        hint = f". For a file: frostline guard {name}" if name.endswith(".py") else ""
        raise FrostlineError(f"no module named {name}{hint}")
    if spec.submodule_search_locations is not None:
        if name.endswith(".__main__"):
            raise FrostlineError(f"{name} is a package and cannot be run")
        return _spec(f"{name}.__main__")
    return spec


def run(script: Script) -> End:
    """Run to the end, threads included; an exception is shown as Python would show it."""
    main = _main_module(script)
    sys.argv[0] = script.argv0
    sys.modules["__main__"] = main
    threads = set(threading.enumerate())
    try:
        exec(script.code, main.__dict__)
        _wait_for(threads)
    except Enough as enough:
        return End(0, stopped=enough)
    except SystemExit as error:
        return End(_exit_code(error))
    except BaseException as error:
        _flush()
        error.__traceback__ = _outside(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        return End(code, raised=type(error).__name__)
    finally:
        _flush()
    return End(0)


def _main_module(script: Script) -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(script.attributes, __builtins__=sys.modules["builtins"])
    return main


def _no_file(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a directory: name the script in it, or a package with -m"
    return (
        f"no such file: {path}. Options of frostline stand before the script; to run a module: "
        "frostline guard -m package.module"
    )


def _first_on_path(folder: str) -> None:
    # `python -P` asks for no folder of the script; the entry in front is then another one.
    if not sys.flags.safe_path:
        sys.path = [folder, *sys.path[1:]]


def _compiled(source: bytes, name: str, full: str) -> CodeType:
    try:
        return compile(source, full, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise FrostlineError(f"{name} is no Python: {error.args[0]}{where}") from error


def _wait_for(known: set[threading.Thread]) -> None:
    """As the interpreter does before it ends: training may still go on in a thread."""
    for thread in threading.enumerate():
        if thread not in known and not thread.daemon:
            thread.join()


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    _flush()
    sys.stderr.write(f"{error.code}\n")
    return 1


def _outside(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the script on: our own frame is none of its business."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _flush() -> None:
    """Whatever the script has put in the place of the streams, and whatever state it left it in."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError, OSError):
            continue
