"""Wrong arguments, answered with the line to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import FreezeError, SelectionError
from frostline.freezing.record import Stats
from frostline.manifests import Manifest

Mode = Literal["eval", "follow"]


def check(
    model: Any, select: Any, switches: Mapping[str, Any], stats: Any, mode: Any, optimizer: Any
) -> None:
    """Refuse what is no model, no switch, no optimizer.

    Raises:
        TypeError: for a wrong type.
        ValueError: for an unknown switch.
    """
    check_model(model, "freeze", select)
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: expected True or False")
    if stats not in get_args(Stats):
        raise ValueError(f"stats={stats!r}: expected 'hold', 'batch' or 'update'")
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}: expected 'eval' or 'follow'")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        inner = getattr(optimizer, "optimizer", None)
        hint = "; pass what it wraps: optimizer.optimizer" if isinstance(inner, Optimizer) else ""
        raise TypeError(f"optimizer is a {type(optimizer).__name__}, no torch optimizer{hint}")


def check_model(model: Any, verb: str, select: Any = None) -> None:
    """Refuse what is no model, with the line to write instead.

    Raises:
        TypeError: if it is none.
        FreezeError: if it is a handle of an earlier freeze.
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(select, nn.Module):
        raise TypeError(
            f"the arguments of {verb} are swapped: write fl.{verb}(model, {model!r})"
            if isinstance(model, str)
            else f"the first argument of {verb} must be the model: fl.{verb}(model, select)"
        )
    if hasattr(type(model), "assert_unchanged"):
        raise FreezeError(
            f"fl.{verb} got a FrozenPart, the handle of an earlier freeze, where the model should "
            f"be. Keep them apart: part = fl.freeze(model, ...); fl.{verb}(model, ...)"
        )
    raise TypeError(
        f"fl.{verb} needs the model (an nn.Module) first and got {_what(model)}. "
        f"Write fl.{verb}(model{_AND_SELECT.get(verb, '')})"
    )


_AND_SELECT = {"freeze": ", 'backbone'", "unfreeze": ", 'backbone'"}


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, Iterable) and not isinstance(value, str | dict):
        return f"a {type(value).__name__}; did you pass model.parameters()?"
    return f"a {type(value).__name__}"


def switches_of(
    manifest: Manifest, params: bool, stats: Stats, mode: Mode
) -> tuple[bool, Stats, Mode]:
    """The switches that a manifest carries, where the caller left the defaults.

    Raises:
        SelectionError: if the caller asked for something else than the manifest says.
    """
    said = manifest.switches or {}
    merged: list[Any] = []
    for name, given, default in (
        ("params", params, True),
        ("stats", stats, "hold"),
        ("mode", mode, "eval"),
    ):
        carried = said.get(name, default)
        if given not in (default, carried):
            raise SelectionError(
                f"{name}={given!r} contradicts the manifest, which says {carried!r}. Leave "
                f"{name} out, or select by name instead of by manifest"
            )
        merged.append(carried)
    return cast("tuple[bool, Stats, Mode]", tuple(merged))
