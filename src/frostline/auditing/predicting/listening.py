"""The modes of a predicted run: every operation on stand-ins, its writes judged and noted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from frostline._batches import tensors_in
from frostline.auditing.predicting.effects import NONE, by_gradient, effect, stored
from frostline.auditing.predicting.ledger import Ledger
from frostline.auditing.predicting.places import Where
from frostline.auditing.predicting.reasons import NotPredictable
from frostline.auditing.predicting.stand_ins import StandIns
from frostline.auditing.predicting.undeclared import Written, written_by
from frostline.auditing.predicting.values import FRESH, Value, Values, joined, number, storage_of

_ARITHMETIC = frozenset({"add", "sub", "mul", "div"})

_NUMBERS = frozenset({"zeros", "ones", "full", "scalar_tensor"})


class Operations(TorchDispatchMode):
    """Runs operations on stand-ins, and notes what they write and what is known of the results.

    Args:
        stand_ins: of the tensors that come along.
        values: what is known of values.
        ledger: the tensors that are watched.
        where: what the run is in, in words.
    """

    def __init__(self, stand_ins: StandIns, values: Values, ledger: Ledger, where: Where) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stand_ins, self._values, self._ledger = stand_ins, values, ledger
        self._where = where
        self.in_backward = False
        self.gradients: dict[int, Value] = {}
        self.any_number = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace in ("prim", "profiler"):
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Tensor, self._stand_ins.of, (args, kwargs or {}))
        name = func._schema.name.partition("::")[2]
        device = self._stand_ins.device
        if device is not None and isinstance(kwargs.get("device"), torch.device):
            kwargs = {**kwargs, "device": device}
        if name == "_local_scalar_dense":
            return self._number(func, args)
        if name in _NUMBERS and _is_one_number(args, kwargs):
            return self._known(func, args, kwargs)
        written = list(written_by(func, name, args, kwargs))
        short = name.removeprefix("_foreach_").rstrip("_")
        for write in written:
            self._note(short, write)
        result = func(*args, **kwargs)
        self._learn(short, args, kwargs, result, written)
        if name in ("lt", "gt") and self._values.of(args[0]).chance:
            _decide(name, number(args[1]), result)
        return result

    def _note(self, name: str, write: Written) -> None:
        found = effect(self._values, name, *write)
        gradient = self.gradients.get(storage_of(write.tensor))
        if gradient is not None:
            found = by_gradient(found, name, write.tensor, gradient)
        if found.kind == "none":
            self._ledger.write(write.tensor, NONE, "")
            return
        self._ledger.write(write.tensor, found, self._where.of(name))
        sources = joined(map(self._values.of, tensors_in([*write.args[1:], write.kwargs])))
        if found.kind == "sure" and not sources.fresh:
            # Whatever it adds, the old value is in it, and is not what it was.
            sources = joined([sources, Value(old=True)])
        self._values.written(write.tensor, sources)

    def _learn(
        self, name: str, args: Any, kwargs: Any, result: Any, written: list[Written]
    ) -> None:
        """What is known of memory that the operation made."""
        old = {storage_of(tensor) for tensor in tensors_in([args, kwargs])}
        for place, tensor in enumerate(tensors_in(result)):
            if tensor.layout is not torch.strided or storage_of(tensor) in old:
                continue
            value = self._values.result(name, args, tensor, place)
            if self.in_backward and name == "ones_like":
                value = replace(FRESH, uniform=True)  # the gradient that backward begins with
            elif name in _ARITHMETIC and not value.fresh and not written:
                value = self._set_apart(name, args, kwargs, value)
            self._values.set(tensor, value)

    def _set_apart(self, name: str, args: Any, kwargs: Any, value: Value) -> Value:
        """Note of ``0.9 * old`` that it differs from ``old``."""
        if not isinstance(args[0], Tensor):
            return value
        found = effect(self._values, name, args[0], args, kwargs)
        if found.kind != "sure":
            return value
        return replace(value, differs=frozenset({storage_of(args[0])}))

    def _known(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        with _disable_current_modes():
            made = func(*args, **kwargs)
        found = self._stand_ins.of_number(made)
        self._values.set(found, Value(zero=number(found) == 0))
        return found

    def _number(self, func: Any, args: tuple[Any, ...]) -> Any:
        """``.item()``: known of a number that nothing unknown was written to."""
        if number(args[0]) is None:
            if self.any_number and args[0].is_floating_point():
                return 1.0
            if self._where.counts and args[0].is_meta and not args[0].is_floating_point():
                return 1  # a counter of batches, of which only this is asked: how many
        return func(*args)


def _is_one_number(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a factory makes a single number on the CPU."""
    sizes = args[0] if args and isinstance(args[0], list | tuple) else []
    device = kwargs.get("device")
    return all(size == 1 for size in sizes) and (device is None or device.type == "cpu")


def _decide(name: str, limit: float | None, result: Any) -> None:
    """A layer that is dropped with probability 0 is never dropped, whatever is drawn."""
    if limit is not None and not 0 < limit < 1:
        with _disable_current_modes():
            result.constant = torch.tensor(limit >= 1 if name == "lt" else limit <= 0)


class Python(TorchFunctionMode):
    """What Python does to tensors beside operations: other memory, and looks into real memory."""

    def __init__(self, stand_ins: StandIns, values: Values, ledger: Ledger, where: Where) -> None:
        super().__init__()
        self._stand_ins, self._values, self._ledger = stand_ins, values, ledger
        self._where = where

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == _SET_DATA:
            return self._swap(*args)
        if func == _GET_DATA:
            return func(self._stand_ins.of(args[0]))
        if func in _LOOKS:
            raise NotPredictable(f"its code looks into memory by {func.__name__}()")
        return func(*args, **(kwargs or {}))

    def _swap(self, tensor: Tensor, data: Tensor) -> None:
        with torch.no_grad():
            now, later = self._stand_ins.of(tensor), self._stand_ins.of(data)
            found = stored(self._values, now, later)
            self._ledger.write(now, NONE, "")
            if found.kind != "none":
                self._ledger.note(id(tensor), found, f".data = ... in {self._where.name}")
            self._stand_ins.swap(tensor, data)


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_GET_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_LOOKS = frozenset({Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr})
