"""What a target gives: a model, or a dict with a model and what belongs to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.cli.targets.spelling import nearest
from frostline.errors import TargetError


@dataclass(frozen=True, eq=False)
class Setup:
    """A model and what a command may need beside it.

    Attributes:
        model: the model.
        frozen: a selector of what is claimed to be frozen, or None.
        optimizer: one that steps at least one parameter of the model, or None.
        batch: one batch, as ``compute_loss`` or the model takes it, or None.
        compute_loss: ``compute_loss(model, batch) -> loss``, or None.
        dataset: what the batches come from, or None.
    """

    model: nn.Module
    frozen: Any = None
    optimizer: Optimizer | None = None
    batch: Any = None
    compute_loss: Callable[..., Any] | None = None
    dataset: Any = None


_KEYS = tuple(field.name for field in fields(Setup))
_EXPECTED = (
    "Expected a model (torch.nn.Module), or a dict with 'model' and where needed "
    + ", ".join(repr(key) for key in _KEYS[1:])
)
_CONTRACT = (
    "The contract is compute_loss(model, batch) -> loss. Write:\n\n"
    "  def compute_loss(model, batch):\n"
    "      x, y = batch\n"
    "      return criterion(model(x), y)"
)


def setup_of(value: Any, whose: str) -> Setup:
    """Make a setup of what the user's code gave.

    Args:
        value: a model, or a dict with ``"model"``.
        whose: where it comes from, for messages, as ``"build() of train.py"``.

    Raises:
        TargetError: it is neither, a key is missing or unknown, or a value is of a wrong type.

    Example:
        >>> setup_of({"model": nn.Linear(2, 1), "frozen": "*"}, "f() of t.py").frozen
        '*'
    """
    if isinstance(value, nn.Module):
        return Setup(value)
    if not isinstance(value, Mapping):
        raise TargetError(f"{whose} gives {got(value)}. {_EXPECTED}{_instead(value)}")
    _check_keys(value, whose)
    setup = Setup(**value)
    _check_optimizer(setup, whose)
    if setup.compute_loss is not None:
        _check_compute_loss(setup.compute_loss, whose)
    return setup


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The parameters of a callable, None for compiled code that tells none."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def got(value: Any) -> str:
    """What kind of thing this is, without its content.

    Example:
        >>> got(nn.Linear), got((1, "a")), got(None), got(nn.ReLU())
        ('the class Linear', 'a tuple (int, str)', 'None', 'an object of the class ReLU')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, tuple):
        return f"a tuple ({', '.join(type(item).__name__ for item in value)})"
    if inspect.isroutine(value):
        return f"the function {value.__name__}, not called"
    return f"an object of the class {type(value).__name__}"


def _instead(value: Any) -> str:
    if value is None:
        return '.\nIt may lack its last line:\n\n  return {"model": model}'
    if isinstance(value, tuple):
        example = 'return {"model": model, "optimizer": optimizer}'
        return f".\nIn the place of the tuple write, for instance:\n\n  {example}"
    return ""


def _check_keys(value: Mapping[Any, Any], whose: str) -> None:
    if value and all(isinstance(item, Tensor) for item in value.values()):
        raise TargetError(
            f"{whose} gives a state dict: tensors without modules. Give the model that loads it, "
            "after\n\n  model.load_state_dict(state_dict)"
        )
    for key in value:
        if key not in _KEYS:
            raise TargetError(
                f"the dict of {whose} has the key {key!r}{nearest(str(key), _KEYS)}. The keys "
                f"are {', '.join(repr(key) for key in _KEYS)}"
            )
    if not isinstance(value.get("model"), nn.Module):
        found = f"has {got(value['model'])} there" if "model" in value else "has no such key"
        raise TargetError(
            f"the dict of {whose} must have a model (torch.nn.Module) under 'model', and {found}"
        )


def _check_optimizer(setup: Setup, whose: str) -> None:
    optimizer = setup.optimizer
    if optimizer is None:
        return
    if not isinstance(optimizer, Optimizer):
        raise TargetError(
            f"'optimizer' in the dict of {whose} is {got(optimizer)}. Expected one "
            "torch.optim.Optimizer, made over parameters of the model"
        )
    own = {id(parameter) for parameter in setup.model.parameters()}
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    # An error and no warning: whatever would be said of it would be about another model.
    if stepped and not any(id(parameter) in own for parameter in stepped):
        raise TargetError(
            f"the optimizer in the dict of {whose} steps none of the model's parameters: it was "
            "made for another model, or before this one was copied or built anew. Make it last:\n\n"
            f"  optimizer = torch.optim.{type(optimizer).__name__}(model.parameters(), ...)"
        )


def _check_compute_loss(function: Any, whose: str) -> None:
    here = f"'compute_loss' in the dict of {whose}"
    if not callable(function):
        raise TargetError(f"{here} is {got(function)}, which cannot be called. {_CONTRACT}")
    if _is_criterion(function):
        raise TargetError(f"{here} is a criterion, {_name(function)}. {_CONTRACT}")
    signature = signature_of(function)
    if signature is None:
        return
    try:
        signature.bind("model", "batch")
    except TypeError as error:
        raise TargetError(
            f"{here}, {_name(function)}{signature}, cannot be called with a model and a batch: "
            f"{error}. {_CONTRACT}"
        ) from error


def _is_criterion(function: Any) -> bool:
    if isinstance(function, partial):
        return _is_criterion(function.func)
    if isinstance(function, nn.Module) or (
        isinstance(function, type) and issubclass(function, nn.Module)
    ):
        return True
    return str(getattr(function, "__module__", None)).partition(".")[0] == "torch"


def _name(function: Any) -> str:
    if isinstance(function, partial):
        return _name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))
