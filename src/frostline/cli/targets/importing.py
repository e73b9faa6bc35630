"""The user's code becomes a module, and what it shares with the process is lent to it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from frostline.cli.targets.failing import their_code
from frostline.cli.targets.spelling import FORMS, nearest, typed
from frostline.errors import TargetError
from frostline.guarding.scripts.running import borrowed

IMPORTING = (
    'while it was imported, which runs all but what stands under `if __name__ == "__main__":`'
)


@contextmanager
def lent(folder: str, arguments: Sequence[str]) -> Iterator[None]:
    """Lend what the code shares with us, and put all of it back.

    ``folder`` comes first on ``sys.path`` (not under ``python -P``). Put back are ``sys.argv``,
    ``sys.path``, the streams, the current directory, and ``sys.modules``: what came from
    ``folder`` is taken out again. Libraries from elsewhere stay, since many cannot be imported
    twice.
    """
    known, home = set(sys.modules), current_directory()
    with borrowed(arguments):
        if not sys.flags.safe_path:
            sys.path.insert(0, folder)
        try:
            yield
        finally:
            with suppress(OSError):  # it was removed meanwhile
                os.chdir(home)
            new = [name for name in set(sys.modules) - known if _comes_from(folder, name)]
            for name in new:
                del sys.modules[name]


def current_directory() -> str:
    """The one that relative paths start from.

    Raises:
        TargetError: it was removed.
    """
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise TargetError("the current directory exists no more; cd to another one") from error


def import_file(where: str, target: str) -> ModuleType:
    """Import a file under the name that its neighbours import it by, if that is free.

    Raises:
        TargetError: it is no Python, or its code failed.
    """
    path = os.path.abspath(where)
    code = compiled(where)
    name = _own_name(Path(path).stem)
    spec = ModuleSpec(name, SourceFileLoader(name, path), origin=path)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.argv[0] = where
    with their_code(target, IMPORTING):
        try:
            exec(code, module.__dict__)
        except ImportError as error:
            if "attempted relative import" in str(error) and _raised_in(path, error):
                raise TargetError(_relative(path, target)) from error
            raise
    return module


def import_module(name: str, target: str) -> ModuleType:
    """Import a module by its full name.

    Raises:
        TargetError: there is none, it is a mere directory, or its code failed.
    """
    spec = find(name)
    sys.argv[0] = spec.origin if spec and spec.origin else name
    with their_code(target, IMPORTING):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".startswith(f"{error.name}."):
                raise TargetError(no_module(error.name)) from error
            raise
    if getattr(module, "__file__", None) is None and hasattr(module, "__path__"):
        raise TargetError(f"{name} is a directory without code of its own. A target is {FORMS}")
    return module


def find(name: str) -> ModuleSpec | None:
    """Where a module comes from, without running its parents; None if that cannot be told."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec


def compiled(path: str, flags: int = 0) -> Any:
    """The code of a file, or its tree with ``ast.PyCF_ONLY_AST``.

    Raises:
        TargetError: it cannot be read, or is no Python.
    """
    full = os.path.abspath(path)
    try:
        with io.open_code(full) as source:
            return compile(source.read(), full, "exec", flags, dont_inherit=True)
    except OSError as error:
        raise TargetError(f"cannot read {path}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        shown = "".join(traceback.format_exception_only(error)).rstrip()
        raise TargetError(f"{path} is no Python that this interpreter reads:\n\n{shown}") from error


def tree_of(path: str) -> ast.Module:
    """The file as a tree; nothing of it is run."""
    tree: ast.Module = compiled(path, ast.PyCF_ONLY_AST)
    return tree


def no_module(name: str) -> str:
    """The message for a name that nothing is imported by."""
    parent, _, last = name.rpartition(".")
    spec = find(parent) if parent else None
    if spec is None:
        return (
            f"no module named {name}, neither in {os.getcwd()} nor installed. A target is {FORMS}"
        )
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    names = {file.stem for folder in folders for file in folder.glob("*") if file.suffix != ".pyc"}
    return f"no module named {name}: {parent} has no {last!r}{nearest(last, names)}"


def _own_name(stem: str) -> str:
    # By this name worker processes and pickles find its classes again. Under -P nothing of the
    # folder is to hide a library.
    free = stem not in sys.modules and not sys.flags.safe_path
    return stem if free and stem.isidentifier() else f"_target_{stem}"


def _comes_from(folder: str, name: str) -> bool:
    """Whether the module, or the package that it is in, lies directly in ``folder``."""
    spec = getattr(sys.modules.get(name.partition(".")[0]), "__spec__", None)
    if not isinstance(spec, ModuleSpec):
        return False
    places = spec.submodule_search_locations or [spec.origin or ""]
    known = [place for place in places if os.path.isabs(place)]  # a built-in one has none
    return folder in map(os.path.dirname, [*known, *map(os.path.realpath, known)])


def _raised_in(path: str, error: ImportError) -> bool:
    return traceback.extract_tb(error.__traceback__)[-1].filename == path


def _relative(path: str, target: str) -> str:
    package = Path(path).parent
    parts, folder = [package.name, Path(path).stem], package.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    module = ".".join(part for part in parts if part != "__init__")
    name = target.rpartition(":")[2]
    return (
        f"{target}: the file has a relative import, and a file by itself is in no package. Name "
        f"it as a module, in the folder above its package:\n\n"
        f"  cd {shlex.quote(str(folder))}\n{typed(f'{module}:{name}')}"
    )
