"""Whether a write changes bytes, judged by what is known of the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from frostline._batches import tensors_in
from frostline.auditing.predicting.undeclared import STATISTICS
from frostline.auditing.predicting.values import Value, Values, joined, number, storage_of


class Effect(NamedTuple):
    """What a write does to the bytes of one tensor.

    Attributes:
        kind: ``"none"``, ``"sure"``, ``"maybe"``; ``"tiny"`` may change it, and takes no earlier
            change back.
        why: what it depends on, where it is not sure.
    """

    kind: Literal["none", "sure", "maybe", "tiny"]
    why: str = ""


NONE, SURE = Effect("none"), Effect("sure")
_EQUAL = Effect("maybe", "whether the value written is the one that was there")
_ROUNDED = Effect("tiny", "whether rounding leaves anything of so small a change")
_VANISHES = Effect("tiny", "its gradient is zero but for rounding: batch norm takes its mean away")
_DAMPED = Effect("tiny", "whether rounding leaves anything of a gradient through a softmax")
_LR_0 = Effect("maybe", "the learning rate is 0")

# Among so many elements some are so close to zero that what is added shows: in half precision,
# and of a small gradient in single precision.
_MANY, _SOME = 4096, 256

Judge = Callable[[Values, Tensor, tuple[Any, ...], dict[str, Any]], Effect]


def effect(
    values: Values, name: str, target: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Effect:
    """What one write does.

    Args:
        values: what is known.
        name: of the operation, without namespace, overload, ``_foreach_`` and trailing underscore.
        target: what it writes.
        args: its positional arguments, the target first.
        kwargs: the others.
    """
    judge = _JUDGES.get(name)
    if judge is not None:
        return judge(values, target, args, kwargs)
    if name in _RANDOM:
        return SURE
    return _stored(values, target, joined(map(values.of, tensors_in([*args[1:], kwargs]))))


def by_gradient(found: Effect, name: str, target: Tensor, gradient: Value) -> Effect:
    """What an optimizer's write does, given what is known of the parameter's gradient."""
    if found.kind != "sure" or name == "mul":  # decay takes no gradient
        return found
    if gradient.noise:
        return _VANISHES
    # Others divide by the gradient's size, so that a small one moves as much as any.
    if gradient.damped and name in ("add", "sub") and target.numel() < _SOME:
        return _DAMPED
    return found


def stored(values: Values, target: Tensor, source: Tensor) -> Effect:
    """What it does to a tensor to hold the values of another from now on."""
    if storage_of(target) == storage_of(source) and _same_window(target, source):
        return NONE
    now, later = number(target), number(source)
    if now is not None and later is not None:
        return NONE if now == later else SURE
    return _stored(values, target, values.of(source))


def _stored(values: Values, target: Tensor, source: Value) -> Effect:
    was = values.of(target)
    if was.zero and source.zero:
        return NONE
    if source.fresh or storage_of(target) in source.differs:
        return SURE
    return _EQUAL


def _same_window(a: Tensor, b: Tensor) -> bool:
    return a.storage_offset() == b.storage_offset() and a.stride() == b.stride()


def _copied(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    return stored(values, target, args[1]) if isinstance(args[1], Tensor) else _EQUAL


def _added(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    alpha = number(kwargs.get("alpha", args[2] if len(args) > 2 else 1))
    return _moved(values, target, args[1], alpha)


def _moved(values: Values, target: Tensor, by: Any, times: float | None) -> Effect:
    """``target += times * by``."""
    step = number(by)
    if times == 0 or step == 0 or (isinstance(by, Tensor) and values.of(by).zero):
        return NONE
    if step is not None and times is not None:
        return _ROUNDED if is_lost(target, step * times) else SURE
    if not isinstance(by, Tensor):
        return _EQUAL
    if not values.of(by).fresh:
        return _EQUAL
    return _ROUNDED if times is not None and is_lost(target, times) else SURE


def _multiplied(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    factor = number(args[1])
    if factor == 1 or values.of(target).zero:
        return NONE
    if factor is not None:
        return _ROUNDED if _is_one(target, factor) else SURE
    return SURE if values.of(args[1]).fresh else _EQUAL


def _product_added(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    """``target += value * a * b``, or ``a / b``."""
    times = number(kwargs.get("value", args[3] if len(args) > 3 else 1))
    pair = [values.of(tensor) for tensor in args[1:3] if isinstance(tensor, Tensor)]
    if times == 0 or values.of(args[1]).zero:
        return NONE
    if not any(value.fresh for value in pair):
        return _EQUAL
    return _ROUNDED if times is not None and is_lost(target, times) else SURE


def _averaged(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    """``target += weight * (end - target)``."""
    weight, end = number(args[2]), values.of(args[1])
    if weight == 0 or (end.zero and values.of(target).zero):
        return NONE
    return SURE if end.fresh else _EQUAL


def _filled(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    """With a constant, or with zero."""
    constant, now = 0 if len(args) == 1 else number(args[1]), number(target)
    if constant is None or (now is None and not values.of(target).zero):
        return _EQUAL
    return NONE if constant == (now or 0) else SURE


def _fused(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    """An optimizer's step on one parameter, whose gradient comes second."""
    if number(kwargs.get("lr")) == 0:
        return _LR_0
    if values.of(args[1]).zero:
        return Effect("maybe", "its gradient is zero throughout")
    return SURE


def _normalised(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    """Running statistics: ``running += momentum * (observed - running)``."""
    if number(args[2]) == 0:
        return NONE
    return SURE if values.of(args[1]).fresh else _EQUAL


def _gathered(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    """Rows that are longer than ``max_norm`` are shortened to it: target, indices, bound, order."""
    table = values.real.get(storage_of(target))
    if table is not None and table.shape == target.shape and not values.of(target).fresh:
        with _disable_current_modes(), torch.no_grad():
            if bool((table.norm(args[3], dim=1) <= args[2]).all()):
                return NONE
    return Effect("maybe", "whether a row that is looked up is longer than max_norm")


def _observed(values: Values, target: Tensor, args: Any, kwargs: Any) -> Effect:
    """The range that a FakeQuantize saw, and its grid: the target, x, observer_on, ..."""
    on = number(args[2])
    if on == 0:
        return NONE
    if on is None or not target.is_floating_point():
        return Effect("maybe", "whether the observer is on, and what it sees")
    return SURE


def is_lost(target: Tensor, step: float) -> bool:
    """Whether so small a step may be lost in rounding in all elements."""
    if not target.is_floating_point():
        return False
    small = abs(step) < 1e-9
    coarse = torch.finfo(target.dtype).eps > 1e-4
    return small or (coarse and (target.numel() < _MANY or abs(step) < 1e-5))


def _is_one(target: Tensor, factor: float) -> bool:
    if not target.is_floating_point():
        return False
    return abs(1 - factor) < torch.finfo(target.dtype).eps


_RANDOM = frozenset({"normal", "uniform", "bernoulli", "exponential", "random", "geometric",
                     "log_normal", "cauchy"})  # fmt: skip
_JUDGES: dict[str, Judge] = {
    "add": _added,
    "sub": _added,
    "mul": _multiplied,
    "div": _multiplied,
    "addcmul": _product_added,
    "addcdiv": _product_added,
    "lerp": _averaged,
    "copy": _copied,
    "fill": _filled,
    "zero": _filled,
    "embedding_renorm": _gathered,
    "_fused_moving_avg_obs_fq_helper": _observed,
    **dict.fromkeys(STATISTICS, _normalised),
    **dict.fromkeys(("_fused_adam", "_fused_adamw", "_fused_sgd", "_fused_adagrad"), _fused),
}
