"""Wrong arguments of ``param_groups``, answered with the line to write instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline._names import Places
from frostline.errors import SelectionError
from frostline.selection import describe


def check(
    model: Any, lr: Any, weight_decay: Any, layer_decay: Any, groups: Any, frozen: Any
) -> None:
    """Refuse what is no model, no number in its range, no table of groups.

    Raises:
        TypeError: for a wrong type.
        ValueError: for a number out of its range, or an unknown switch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"fl.param_groups needs the model (an nn.Module) and got {_what(model)}. "
            "Pass the model, not its parameters: fl.param_groups(model, 1e-3)"
        )
    _check_number("lr", lr)
    _check_number("weight_decay", weight_decay)
    if layer_decay is not None:
        _check_number("layer_decay", layer_decay)
        if not 0 < layer_decay <= 1:
            raise ValueError(
                f"layer_decay={layer_decay!r}: expected a factor above 0 and at most 1, for "
                "example 0.75, or None for one learning rate in all layers"
            )
    if frozen not in ("skip", "keep"):
        raise ValueError(
            f"frozen={frozen!r}: expected 'skip' (leave frozen parameters out) or 'keep'"
        )
    if groups is not None:
        _check_groups(groups)


def _what(value: Any) -> str:
    if hasattr(type(value), "assert_unchanged"):
        return "a FrozenPart, the handle of an earlier freeze"
    return f"a {type(value).__name__}"


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a tensor: the groups would share it, and a scheduler that fills it for one "
            f"would set all. Pass {name} as a number, and give every group its own tensor "
            "afterwards: for group in groups: group['lr'] = torch.tensor(group['lr'])"
        )
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: expected a number and got a {type(value).__name__}")
    if not (math.isfinite(number := float(value)) and number >= 0):
        raise ValueError(f"{name}={value!r}: expected a finite number, 0 or above")


def _check_groups(groups: Any) -> None:
    if not isinstance(groups, Mapping):
        raise TypeError(
            f"groups is a {type(groups).__name__}: expected a dict of selectors, each with a "
            'learning rate or options: groups={"backbone": 1e-5, "head": {"lr": 1e-3}}'
        )
    for selector, asked in groups.items():
        where = f"groups[{describe(selector)}]"
        if not isinstance(asked, Mapping):
            _check_number(where, asked)
            continue
        if "params" in asked:
            raise ValueError(
                f'{where} has the option "params", but which parameters stand in the group is '
                'said by its selector. Leave it out: {"lr": 1e-3}'
            )
        for option in asked.keys() & {"lr", "weight_decay"}:
            _check_number(f"{where}[{option!r}]", asked[option])


def refuse_lazy(everything: Places) -> None:
    """Parameters without a shape yet cannot be sorted by it.

    Raises:
        SelectionError: if there is one.
    """
    lazy = [entry.name for entry in everything.tensors if is_lazy(entry.tensor)]
    if lazy:
        raise SelectionError(
            f"{len(lazy)} parameters have no shape yet, the first: {lazy[0]}. Their modules are "
            "lazy; run one batch first: model(inputs)"
        )
