"""Whether the code of a module draws random numbers by itself: ``F.dropout``, ``torch.rand``.

Read from bytecode, like all that is known of classes that nobody registered.
"""

from __future__ import annotations

import dis
import linecache
import os
from collections.abc import Iterator
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from frostline.behaviours.own_code import running

_FUNCTIONS = frozenset(
    {
        "alpha_dropout", "bernoulli", "drop_path", "dropout", "dropout1d", "dropout2d", "dropout3d",
        "feature_alpha_dropout", "feature_dropout", "gumbel_softmax", "multinomial", "normal",
        "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random",
        "randperm", "rrelu", "uniform", "_compute_mask_indices",
    }
)  # fmt: skip
_METHODS = frozenset(
    {"bernoulli_", "exponential_", "geometric_", "normal_", "random_", "rsample", "uniform_"}
)
# Attention functions draw if they get one of these.
_KEYWORDS = frozenset({"dropout", "dropout_p"})
_LOADS = ("LOAD_ATTR", "LOAD_METHOD")

_answers: WeakKeyDictionary[type, str | None] = WeakKeyDictionary()
# Attributes that the code reads and that hold chances, by their names.
_chances: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def draws(module: nn.Module) -> str | None:
    """Where the code that a forward of ``module`` reaches draws random numbers, or None.

    None, too, if every chance that the code names (``self.dropout``, ``self.config.layerdrop``) is
    0. Classes of torch are not read: those that draw are registered.

    Example:
        >>> class Noisy(nn.Module):
        ...     def forward(self, x):
        ...         return nn.functional.dropout(x, self.drop)
        >>> noisy = Noisy()
        >>> noisy.drop = 0.1
        >>> draws(noisy) is not None
        True
        >>> noisy.drop = 0.0
        >>> draws(noisy) is None
        True
    """
    cls = type(module)
    if cls.__module__.startswith("torch."):
        return None
    if cls not in _answers:
        _answers[cls] = next(_lines(cls), None)
    line = _answers[cls]
    return None if line is None or _never(module) else line


def _lines(cls: type[nn.Module]) -> Iterator[str]:
    for code in running(cls):
        number = code.co_firstlineno
        root: Any = None
        for instruction in dis.get_instructions(code):
            number = instruction.starts_line or number
            if _is_draw(instruction, root) or _KEYWORDS.intersection(_keywords(code, instruction)):
                yield _shown(code, number)
            if instruction.opname == "LOAD_GLOBAL":
                root = instruction.argval
            elif instruction.opname not in _LOADS:
                root = None


def _is_draw(instruction: dis.Instruction, root: Any) -> bool:
    """Whether this loads a function that draws; ``self.dropout`` is a module, and no function."""
    name = instruction.argval
    if instruction.opname == "LOAD_GLOBAL":
        return name in _FUNCTIONS
    if instruction.opname in _LOADS:
        return name in _METHODS or (root is not None and name in _FUNCTIONS)
    return False


def _keywords(code: CodeType, instruction: dis.Instruction) -> tuple[Any, ...]:
    """The names of keyword arguments that this instruction brings; from Python 3.13 a constant."""
    if instruction.opname == "KW_NAMES" and instruction.arg is not None:
        return tuple(code.co_consts[instruction.arg])
    return instruction.argval if isinstance(instruction.argval, tuple) else ()


def _shown(code: CodeType, number: int) -> str:
    text = linecache.getline(code.co_filename, number).strip()
    place = f"{os.path.basename(code.co_filename)}:{number}"
    return f"{place}: {text}" if text else place


def _never(module: nn.Module) -> bool:
    cls = type(module)
    if cls not in _chances:
        names = {name for code in running(cls) for name in code.co_names}
        _chances[cls] = frozenset(filter(_is_chance, names))
    found = [chance for name in _chances[cls] if (chance := _chance(module, name)) is not None]
    return bool(found) and not any(found)


def _is_chance(name: str) -> bool:
    return "drop" in name or (name.startswith("mask_") and name.endswith("_prob"))


def _chance(module: nn.Module, name: str) -> float | None:
    """The number behind a name like ``dropout``: in the module, its dropout, or its config."""
    config = vars(vars(module).get("config", object))
    if name.startswith("mask_") and config.get("apply_spec_augment") is False:
        return 0.0
    places = (vars(module), config)
    child = module._modules.get(name)
    values = [place.get(name) for place in places] + [vars(child).get("p") if child else None]
    return next((float(value) for value in values if isinstance(value, int | float)), None)
