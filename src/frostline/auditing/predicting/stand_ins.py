"""Tensors without memory in the place of real ones, sharing with each other what those share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from frostline._state import has_bytes
from frostline.auditing.predicting.values import FRESH, Value, Values, storage_of


class StandIns:
    """Gives the stand-in of a tensor; the same for the same memory.

    Args:
        fake: the mode that computes shapes only.
        values: where it is noted what is known of real values.
        device: that the run pretends to be on; None leaves each tensor where it is.
    """

    def __init__(self, fake: FakeTensorMode, values: Values, device: torch.device | None) -> None:
        self.fake, self._values, self.device = fake, values, device
        self._swapped: dict[int, tuple[Tensor, Tensor]] = {}
        # By the address of real memory, which is kept so that no other gets it; and one stand-in,
        # which keeps the memory that all its stand-ins share.
        self._seen: dict[int, Any] = {}
        self._copies: dict[int, tuple[Any, Any, Any]] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The stand-in; tensors that already have no memory stand for themselves."""
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) in self._swapped:
            return self._swapped[id(tensor)][1]
        found = self._constant(tensor) if _may_be_constant(tensor) else self._plain(tensor)
        if self._is_new(tensor, found):
            zero, uniform = is_zero(tensor), _is_uniform(tensor)
            self._values.set(found, Value(old=True, zero=zero, uniform=uniform))
            if has_bytes(tensor):
                self._values.real[storage_of(found)] = tensor
        return found

    def of_moving(self, tensor: Tensor) -> Tensor:
        """The stand-in of a gradient, or of what an optimizer keeps: no value of the model."""
        found = self.of(tensor)
        zero = is_zero(tensor)
        self._values.set(found, Value(fresh=not zero, old=True, zero=zero))
        return found

    def of_batch(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The stand-in of a tensor of the batch, whose values nobody knows, on another device."""
        with self.fake:
            found = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device,
                requires_grad=tensor.requires_grad,
            )  # fmt: skip
        self._values.set(found, FRESH)
        return found

    def of_number(self, tensor: Tensor) -> Tensor:
        """The stand-in of a number that code has just made, and that is therefore known."""
        return self._constant(tensor)

    def swap(self, tensor: Tensor, data: Tensor) -> None:
        """``tensor.data = data``: from now on it has other memory."""
        self._swapped[id(tensor)] = tensor, self.of(data).detach()

    def _is_new(self, tensor: Tensor, stand_in: Tensor) -> bool:
        if tensor.layout is not torch.strided:
            return False
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return False
        self._seen[storage._cdata] = storage, stand_in
        return True

    def _plain(self, tensor: Tensor) -> Tensor:
        found: Any = self.fake.from_tensor(tensor)
        if self.device is not None and found.device != self.device:
            found.fake_device = self.device
        return found  # type: ignore[no-any-return]

    def _constant(self, tensor: Tensor) -> Tensor:
        # Of one number the value comes along, in a copy: counters decide about control flow.
        converter: Any = self.fake.fake_tensor_converter
        storage = tensor.untyped_storage()
        _, copy, first = self._copies.get(storage._cdata, (None, None, None))
        with _disable_current_modes():
            copy = storage.clone() if copy is None else copy
            window = (tensor.storage_offset(), tensor.shape, tensor.stride())
            twin = torch.empty(0, dtype=tensor.dtype).set_(copy, *window)
        found: Any = converter.from_real_tensor(self.fake, twin, make_constant=True)
        if first is None:
            self._copies[storage._cdata] = storage, copy, found
        elif first.constant is None:  # something unknown was written there since
            found.constant = None
        return found  # type: ignore[no-any-return]


def _may_be_constant(tensor: Tensor) -> bool:
    if tensor.numel() != 1 or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return False
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and tensor.untyped_storage().nbytes() == tensor.element_size()


def _is_uniform(tensor: Tensor) -> bool:
    """Whether the scale of a norm is the same for all features."""
    if not has_bytes(tensor) or tensor.dim() != 1 or not tensor.numel():
        return False
    with _disable_current_modes(), torch.no_grad():
        plain = tensor.layout is torch.strided and not tensor.is_quantized
        return plain and bool((tensor == tensor[0]).all())


def is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zero throughout, as far as there are values to see it by."""
    with _disable_current_modes(), torch.no_grad():
        if not has_bytes(tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
            return False
        if not tensor.numel():
            return False
        first = tensor.detach()[(0,) * tensor.dim()]
        return not bool(first) and not bool(tensor.detach().any())
