"""From a target on the command line to the user's model."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from frostline.cli.targets.failing import their_code
from frostline.cli.targets.importing import (
    current_directory,
    find,
    import_file,
    import_module,
    lent,
    no_module,
    tree_of,
)
from frostline.cli.targets.listing import kept_from_import, without_name
from frostline.cli.targets.refusing import check_path
from frostline.cli.targets.setups import Setup, setup_of, signature_of
from frostline.cli.targets.spelling import FORMS, is_module, nearest, split, typed
from frostline.errors import TargetError

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def load(target: str, arguments: Sequence[str] = ()) -> Setup:
    """Get the model of a target. This imports the user's file, which runs it.

    Args:
        target: ``file.py:name`` or ``package.module:name``, where the name is a function without
            required parameters, or an attribute, that gives a model or a dict with ``"model"``.
        arguments: what the code finds in ``sys.argv`` behind its own name.

    Raises:
        TargetError: there is no such file or name, it gives no model, or the user's code failed.

    Example:
        >>> load("torch.nn:Flatten").model
        Flatten(start_dim=1, end_dim=-1)
    """
    with loaded(target, arguments) as setup:
        return setup


@contextmanager
def loaded(target: str, arguments: Sequence[str] = ()) -> Iterator[Setup]:
    """As :func:`load`, for work on the model: its code still finds what was lent to it.

    A forward may import a neighbour, and a worker process looks for the class of its dataset by
    the name of its module; both need ``sys.path`` and ``sys.modules`` as they were when the file
    was imported. The current directory is put back at the end as well, so write files after it.

    Raises:
        TargetError: as for :func:`load`.
    """
    where, name = split(target)
    if not where:
        raise TargetError(f"{target!r} names no file. A target is {FORMS}")
    by_name = is_module(where) and not (name is None and os.path.isdir(where))
    if not by_name:
        check_path(where)
    folder = current_directory() if by_name else os.path.dirname(os.path.realpath(where))
    with lent(folder, arguments):
        if name is None:
            raise TargetError(without_name(where, tree_of(_source(where) if by_name else where)))
        _check_name(where, name)
        module = import_module(where, target) if by_name else import_file(where, target)
        value = _attribute(module, name, where, target)
        yield _setup(value, name, where, target)


def _source(module: str) -> str:
    spec = find(module)
    if spec is None:
        raise TargetError(no_module(module))
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise TargetError(f"{module} has no source to list. A target is {FORMS}")
    return spec.origin


def _check_name(where: str, name: str) -> None:
    if not name.isidentifier():
        bare = re.match(r"[^\W\d]\w*", name)
        instead = bare.group() if bare else "build"
        raise TargetError(
            f"{name!r} is no name at the top level of {where}. It stands there bare, as in\n\n"
            f"{typed(f'{where}:{instead}')}"
        )


def _attribute(module: ModuleType, name: str, where: str, target: str) -> Any:
    with their_code(target, f"while {name} was looked up"):  # a module may have a __getattr__
        try:
            return getattr(module, name)
        except AttributeError as error:
            raise TargetError(_no_attribute(module, name, where)) from error


def _no_attribute(module: ModuleType, name: str, where: str) -> str:
    file = module.__file__ or ""
    if file.endswith(".py") and name in kept_from_import(tree_of(file)):
        return (
            f'{name!r} of {where} stands under `if __name__ == "__main__":`, which is left out '
            "when the file is imported. Move what builds the model into a function above it"
        )
    names = [other for other in vars(module) if not other.startswith("__")]
    return (
        f"{where} was imported, and has no {name!r}{nearest(name, names)}. To see what it has, "
        f"type\n\n{typed(where)}"
    )


def _setup(value: Any, name: str, where: str, target: str) -> Setup:
    if not _to_be_called(value):
        return setup_of(value, f"{name} of {where}")
    _check_call(value, name, where)
    with their_code(target, f"while {name}() ran"):
        given = value()
    if inspect.iscoroutine(given):
        given.close()
        raise TargetError(_async(name, where))
    return setup_of(given, f"{name}() of {where}")


def _to_be_called(value: Any) -> bool:
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    return callable(value) and not isinstance(value, nn.Module)


def _check_call(function: Callable[..., Any], name: str, where: str) -> None:
    if inspect.iscoroutinefunction(function):
        raise TargetError(_async(name, where))
    signature = signature_of(function)
    parameters = signature.parameters.values() if signature else ()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    if required:
        handed_in = ", ".join(f"{parameter}=..." for parameter in required)
        raise TargetError(
            f"{name} of {where} requires {', '.join(required)}, and is called without arguments. "
            f"Write a function that hands them in:\n\n  def setup():\n"
            f"      return {name}({handed_in})\n\nand type\n\n{typed(f'{where}:setup')}"
        )


def _async(name: str, where: str) -> str:
    return (
        f"{name} of {where} is an async function, and nothing awaits it here. Write a plain one:"
        f"\n\n  def setup():\n      return asyncio.run({name}())\n\nand type\n\n"
        f"{typed(f'{where}:setup')}"
    )
