"""Which parameters get no weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from types import EllipsisType

from torch import nn

from frostline._names import NamedTensor, named_tensors
from frostline.parameter_groups.choosing import parameters_of
from frostline.selection import Selector


def spared(
    model: nn.Module, parameters: Iterable[NamedTensor], no_decay: Selector | EllipsisType
) -> set[int]:
    """Ids of the parameters that do not decay; a tied tensor is in when one of its places is.

    Raises:
        SelectionError: if ``no_decay`` is a selector that matches no parameter.
    """
    if no_decay is None:
        return set()
    if not isinstance(no_decay, EllipsisType):
        return {id(entry.tensor) for entry in parameters_of(model, no_decay)}
    usual = (e for e in parameters if e.tensor.ndim <= 1 or e.name.rpartition(".")[2] == "bias")
    return {id(entry.tensor) for entry in (*usual, *_declared(model))}


def _declared(module: nn.Module) -> Iterator[NamedTensor]:
    """What ``no_weight_decay()`` names; the outermost module that has one speaks for all below."""
    declare = getattr(module, "no_weight_decay", None)
    if callable(declare):
        patterns = list(declare())
        for entry in named_tensors(module):
            if any(fnmatchcase(entry.name, pattern) for pattern in patterns):
                yield entry
        return
    for child in module.children():
        yield from _declared(child)
