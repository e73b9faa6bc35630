"""What is known of the values of tensors that have no memory.

A few facts a storage, carried along every operation:

fresh: it depends on the batch, the gradient or random numbers by arithmetic, so that it equals no
    older value but by accident.
old: it depends on tensors that were there before the step.
zero: it is zero throughout.
centred: a gradient that sums to zero over each channel, as batch norm's in training.
uniform: one number throughout, as the gradient of a mean.
noise: a gradient that is zero but for rounding: what a centred one sums up to; what a norm or a
    softmax leaves of a uniform one.
damped: a gradient that came through a softmax alone, which may make it as small as it likes.
chance: one random number from 0 to 1.
differs: ids of storages that it was made from by an operation that changes every value but zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from frostline._batches import tensors_in


@dataclass(frozen=True)
class Value:
    """What is known of the values in one storage; see the module."""

    fresh: bool = False
    old: bool = False
    zero: bool = False
    centred: bool = False
    uniform: bool = False
    noise: bool = False
    damped: bool = False
    chance: bool = False
    differs: frozenset[int] = frozenset()


NOTHING = Value()
FRESH = Value(fresh=True)
OLD = Value(old=True)

_FACTORIES_OF_ZERO = frozenset({"zeros", "zeros_like", "new_zeros", "zero", "_efficientzerotensor"})
_RANDOM = frozenset(
    {"rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal",
     "uniform", "bernoulli", "multinomial", "native_dropout", "exponential", "random"}
)  # fmt: skip
# Zero where one factor is, by position.
_PRODUCTS = frozenset({"mm", "bmm", "mv", "dot", "mul", "convolution", "_foreach_mul"})
# Zero where all their tensors are.
_KEEP_ZERO = frozenset(
    {"add", "sub", "rsub", "neg", "sum", "mean", "clone", "_to_copy", "cat", "stack", "relu",
     "gelu", "silu", "tanh", "leaky_relu", "hardswish", "elu", "mish", "abs", "sqrt", "sign",
     "index_select", "index", "embedding", "lift_fresh_copy", "_unsafe_view", "_reshape_alias",
     "constant_pad_nd", "avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices", "repeat",
     "upsample_nearest2d", "upsample_bilinear2d", "slice_scatter", "select_scatter", "copy",
     "contiguous", "native_dropout", "_foreach_add", "_foreach_sqrt", "lerp", "roll", "flip",
     "masked_fill", "gather", "addcmul", "div", "_foreach_div", "norm", "pow"}
)  # fmt: skip
# One of two values by comparison: an old one may win.
_CHOOSING = frozenset({"minimum", "maximum", "fmin", "fmax", "where", "clamp", "clamp_min",
                       "clamp_max"})  # fmt: skip

# Where the gradients of norms take the scale that their input's gradient is a multiple of.
_SCALE_AT = {
    "native_batch_norm_backward": 2,
    "cudnn_batch_norm_backward": 2,
    "native_layer_norm_backward": 5,
    "native_group_norm_backward": 4,
}


class Values:
    """The facts of every storage of a run.

    Attributes:
        real: of stand-ins of real memory a tensor that it was met with.
    """

    def __init__(self) -> None:
        self._of: dict[int, Value] = {}
        self.real: dict[int, Tensor] = {}

    def of(self, tensor: Tensor) -> Value:
        """What is known of a tensor."""
        return self._of.get(storage_of(tensor), NOTHING)

    def set(self, tensor: Tensor, value: Value) -> None:
        """Say what is known, at the birth of its storage or after a write."""
        if storage := storage_of(tensor):
            self._of[storage] = value

    def written(self, tensor: Tensor, value: Value) -> None:
        """After a write of ``value`` into a tensor, in a storage that may hold more."""
        was = self.of(tensor)
        self.set(
            tensor,
            Value(
                fresh=was.fresh or value.fresh,
                old=was.old or value.old,
                zero=was.zero and value.zero,
                noise=value.noise and (was.zero or was.noise or not was.fresh),
                damped=value.damped and (was.zero or was.damped or not was.fresh),
                differs=was.differs | value.differs,
            ),
        )

    def result(self, name: str, args: tuple[Any, ...], output: Tensor, place: int) -> Value:
        """What is known of an output of an operation.

        Args:
            name: of the operation, without its namespace and trailing underscore.
            args: its positional arguments.
            output: one of its outputs.
            place: which one.
        """
        if name in _FACTORIES_OF_ZERO or (name in ("full", "full_like", "fill") and _is_0(args)):
            return Value(zero=True)
        inputs = [self.of(tensor) for tensor in tensors_in(args)]
        zero = self._is_zero(name, args, inputs, place)
        value = Value(
            fresh=not zero and (name in _RANDOM or self._is_fresh(name, args, inputs, output)),
            old=any(each.old for each in inputs),
            zero=zero,
            uniform=output.numel() == 1 or _is_uniform(name, args, inputs),
            noise=_all_but_zero(name, [each.noise for each in inputs], inputs),
            damped=_is_damped(name, inputs, place),
            chance=name in ("rand", "rand_like") and output.numel() == 1,
        )
        return self._of_gradient(name, args, inputs, value, place)

    def _is_fresh(
        self, name: str, args: tuple[Any, ...], inputs: list[Value], output: Tensor
    ) -> bool:
        if not any(value.fresh for value in inputs):
            return False
        floating_in = any(tensor.is_floating_point() for tensor in tensors_in(args))
        if floating_in and not _counts(output):
            return False  # a comparison, an index of the largest
        if name in _CHOOSING:
            return not any(value.old and not value.fresh for value in inputs)
        return True

    def _is_zero(self, name: str, args: tuple[Any, ...], inputs: list[Value], place: int) -> bool:
        if name in _PRODUCTS:
            return self._is_zero_product(name, args)
        zero = [value.zero for value in inputs]
        if not any(zero):
            return False
        if name in ("addmm", "baddbmm", "addmv", "addbmm"):
            return zero[0] and (zero[1] or zero[2])
        if name.endswith("_backward"):
            return self._is_zero_gradient(name, args, place)
        return name in _KEEP_ZERO and all(zero)

    def _is_zero_product(self, name: str, args: tuple[Any, ...]) -> bool:
        factors = [
            self.of(arg).zero if isinstance(arg, Tensor) else number(arg) == 0 for arg in args[:2]
        ]
        bias = args[2] if name == "convolution" else None
        return any(factors) and (not isinstance(bias, Tensor) or self.of(bias).zero)

    def _is_zero_gradient(self, name: str, args: tuple[Any, ...], place: int) -> bool:
        if self._is_zero_at(args, 0):
            return True
        if name == "convolution_backward":  # of its input, its weight, its bias
            return place < 2 and self._is_zero_at(args, 2 - place)
        if name == "threshold_backward":
            return self._is_zero_at(args, 1)
        return place == 0 and self._is_zero_at(args, _SCALE_AT.get(name))

    def _is_zero_at(self, args: tuple[Any, ...], place: int | None) -> bool:
        found = args[place] if place is not None and place < len(args) else None
        return isinstance(found, Tensor) and self.of(found).zero

    def _of_gradient(
        self, name: str, args: tuple[Any, ...], inputs: list[Value], value: Value, place: int
    ) -> Value:
        if name == "native_batch_norm_backward" and place < 2 and args[7]:
            # A uniform gradient meets values whose sum is zero, in the input as in the scale.
            noise = value.noise or inputs[0].uniform
            return replace(value, centred=place == 0, noise=noise)
        if self._cancels(name, args, place):
            return replace(value, noise=True)
        if name == "native_batch_norm_backward" and place == 2 and inputs[0].centred:
            return replace(value, noise=True)  # a shift before a batch norm
        bias = name == "convolution_backward" and place == 2
        if (bias or name == "sum") and inputs and inputs[0].centred:
            return replace(value, noise=True)
        if name in _COPIES and inputs:
            return replace(value, centred=inputs[0].centred, differs=inputs[0].differs)
        return value

    def _cancels(self, name: str, args: tuple[Any, ...], place: int) -> bool:
        """Whether a uniform gradient meets what takes the mean away."""
        if place or name not in _TAKE_THE_MEAN or not self.of(args[0]).uniform:
            return False
        scale = args[_SCALE_AT[name]] if name in _SCALE_AT else None
        return not isinstance(scale, Tensor) or self.of(scale).uniform


_COPIES = frozenset({"clone", "_to_copy", "_unsafe_view", "_reshape_alias", "lift_fresh_copy"})
_TAKE_THE_MEAN = frozenset(
    {"_softmax_backward_data", "native_layer_norm_backward", "native_group_norm_backward"}
)
_SUMS = frozenset({"add", "cat", "stack", "_foreach_add", "sub"})


def storage_of(tensor: Tensor) -> int:
    """The identity of the memory that a tensor would have; 0 of sparse ones, which have several."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0


def number(value: Any) -> float | None:
    """A number of Python, or the one in a tensor whose value is known."""
    if type(value) in (int, float):
        return float(value)
    constant = getattr(value, "constant", None)
    if isinstance(constant, Tensor) and constant.numel() == 1 and not constant.is_complex():
        with _disable_current_modes():
            return float(constant.item())
    return None


def joined(values: Iterable[Value]) -> Value:
    """What is known of a value made of all these."""
    found = list(values)
    return Value(
        fresh=any(value.fresh for value in found),
        old=any(value.old for value in found),
        zero=bool(found) and all(value.zero for value in found),
        noise=any(value.noise for value in found),
        damped=any(value.damped for value in found),
    )


def _is_damped(name: str, inputs: list[Value], place: int) -> bool:
    if name == "_softmax_backward_data":
        return True
    if name.startswith("_scaled_dot_product") and name.endswith("_backward"):
        return place < 2  # the gradients of queries and keys, not of values
    return _all_but_zero(name, [value.damped for value in inputs], inputs)


def _all_but_zero(name: str, has: list[bool], inputs: list[Value]) -> bool:
    """Whether what factors have, or all terms of a sum that are not zero, is there afterwards."""
    kept = [each for each, value in zip(has, inputs, strict=True) if not value.zero]
    return any(kept) and (name not in _SUMS or all(kept))


def _is_uniform(name: str, args: tuple[Any, ...], inputs: list[Value]) -> bool:
    plain = name in _COPIES or name in ("mul", "div", "neg", "expand", "repeat")
    return plain and bool(inputs) and all(value.uniform for value in inputs)


def _is_0(args: tuple[Any, ...]) -> bool:
    return any(type(arg) in (int, float) and arg == 0 for arg in args[1:2])


def _counts(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
