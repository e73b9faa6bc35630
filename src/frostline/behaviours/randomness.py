"""Modules that draw random numbers: dropout in all its forms, in training mode or in every mode."""

from __future__ import annotations

from typing import Any

from torch import nn

from frostline.behaviours.doing import Doing

_PASSES = Doing("passes its input on")


def dropout(module: nn.Module, training: bool) -> Doing:
    """Dropout of elements or channels (Srivastava et al. 2014)."""
    what = "single values" if type(module).__name__ == "Dropout" else "values or whole channels"
    return _dropped(module, what, training)


def drop_path(module: nn.Module, training: bool) -> Doing:
    """DropPath, stochastic depth: whole samples of a branch (Huang et al. 2016)."""
    return _dropped(module, "whole samples", training)


def _dropped(module: nn.Module, what: str, training: bool) -> Doing:
    if not training or probability(module) == 0:
        return _PASSES
    return Doing(
        f"sets {what} to 0 with its probability p, at random", "y = mask x / (1 - p)", random=True
    )


def attention(module: nn.Module, training: bool) -> Doing:
    """MultiheadAttention, whose dropout is an argument and no module."""
    own: Any = module
    if not training or own.dropout == 0:
        return Doing("attends")
    return Doing(
        f"attends, and drops attention weights with probability {own.dropout:g}", random=True
    )


def recurrent(module: nn.Module, training: bool) -> Doing:
    """LSTM, GRU and RNN, which drop between their layers."""
    own: Any = module
    if not training or own.dropout == 0 or own.num_layers == 1:
        return Doing("runs its layers")
    return Doing(
        f"runs its layers, and drops between them with probability {own.dropout:g}", random=True
    )


def rrelu(module: nn.Module, training: bool) -> Doing:
    """RReLU: a random slope in training, the mean slope in eval (Xu et al. 2015)."""
    own: Any = module
    if training and own.lower != own.upper:
        slope = f"a random slope in [{own.lower:g}, {own.upper:g}]"
        return Doing(f"multiplies negative values by {slope}", random=True)
    return Doing(f"multiplies negative values by {(own.lower + own.upper) / 2:g}")


def fractional_pool(module: nn.Module, training: bool) -> Doing:
    """FractionalMaxPool, which draws its regions anew in every mode (Graham 2014)."""
    if getattr(module, "_random_samples", None) is not None:
        return Doing("pools over regions that were given")
    return Doing("pools over regions that it draws at random, in every mode", random=True)


def probability(module: nn.Module) -> float | None:
    """The chance with which something is dropped, in [0, 1]; None for modules that drop nothing."""
    for name in ("p", "drop_prob", "dropout"):
        value = vars(module).get(name, "absent")
        # timm's DropPath has None where nothing is dropped.
        if value is None or isinstance(value, int | float):
            return float(value or 0.0)
    return None
