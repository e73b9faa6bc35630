"""How modules are held whose eval mode is not enough, and which ones are known.

Found by the full name of a class in the module's MRO, so that nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.errors import FrostlineWarning
from frostline.freezing import ignored
from frostline.freezing.machinery import Held
from frostline.freezing.record import ASKED, RECORD, Record
from frostline.freezing.watching import Watched

_KERNEL_TRAINS = "_frostline_kernel_trains"
_GATE = "_frostline_checkpoint_gate"


def _record(module: nn.Module) -> Record | None:
    record: Record | None = module.__dict__.get(RECORD)
    return record


def _is_held(module: nn.Module) -> bool:
    record = _record(module)
    return record is not None and record.eval


class HeldNorm(Held):
    """BatchNorm and its kin: no reset while held; batch statistics without writing on request."""

    @property
    def track_running_stats(self) -> bool:
        own = self.__dict__
        record = own.get(RECORD)
        # In training, "does not track" is torch's own way to say: the batch, and write nothing.
        if record is not None and record.batch_stats and own["training"]:
            return False
        if "track_running_stats" not in own:
            raise AttributeError("track_running_stats")
        return own["track_running_stats"]  # type: ignore[no-any-return]

    @track_running_stats.setter
    def track_running_stats(self, value: bool) -> None:
        self.__dict__["track_running_stats"] = value

    def reset_running_stats(self) -> None:
        record = _record(self)
        if record is None or not (record.eval or record.batch_stats):
            super().reset_running_stats()  # type: ignore[operator]
            return
        first = ignored.note(self, "reset_running_stats()")
        if first and not ignored.called_from("update_bn"):
            ignored.warn(
                f"reset_running_stats() on a held {type(self).__name__} was ignored, at "
                f"{ignored.caller()}. If you meant it: fl.unfreeze(model, ...) first, or "
                'fl.freeze(..., stats="update")',
                FrostlineWarning,
            )


class HeldInstanceNorm(HeldNorm):
    """InstanceNorm writes its statistics whenever it is given them, tracked or not."""

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        record = _record(self)
        if record is None or not record.batch_stats or not self.training:
            return super()._apply_instance_norm(input)  # type: ignore[operator, no-any-return]
        return F.instance_norm(
            input,
            None,
            None,
            self.weight,
            self.bias,
            True,
            self.momentum,
            self.eps,  # type: ignore[arg-type]
        )


class HeldEmbedding(Held):
    """``max_norm`` renormalises a copy of the rows that were looked up, never the table."""

    def forward(self, input: Tensor) -> Tensor:
        if not _is_held(self) or self.max_norm is None:
            return super().forward(input)  # type: ignore[no-any-return]
        rows = _renormalised_rows(self, input)
        return rows.view(*input.shape, rows.shape[-1])


class HeldEmbeddingBag(Held):
    """As :class:`HeldEmbedding`, for bags."""

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        if not _is_held(self) or self.max_norm is None:
            return super().forward(input, offsets, per_sample_weights)  # type: ignore[no-any-return]
        rows = _renormalised_rows(self, input)
        index = torch.arange(rows.shape[0], device=rows.device).view_as(input)
        padding = None
        if self.padding_idx is not None:
            # One more row stands for the padding, whatever row it was in the table.
            padding = rows.shape[0]
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
            index = torch.where(input == self.padding_idx, padding, index)
        return F.embedding_bag(
            index,
            rows,
            offsets,
            mode=self.mode,  # type: ignore[arg-type]
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,  # type: ignore[arg-type]
            padding_idx=padding,
        )


def _renormalised_rows(module: nn.Module, input: Tensor) -> Tensor:
    """The rows that ``input`` asks for, one each, renormalised by torch's own kernel."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    rows = weight.detach().index_select(0, input.reshape(-1))
    each = torch.arange(rows.shape[0], device=rows.device)
    torch.embedding_renorm_(rows, each, module.max_norm, module.norm_type)  # type: ignore[arg-type]
    return rows


class HeldRNN(Held):
    """cuDNN's recurrent kernels refuse backward in eval mode, so gradients ask for train mode.

    Dropout between the layers is 0 then, so the numbers are those of eval mode.
    """

    @property
    def dropout(self) -> float:
        own = self.__dict__
        if _KERNEL_TRAINS in own:
            return 0.0
        if "dropout" not in own:
            raise AttributeError("dropout")
        return own["dropout"]  # type: ignore[no-any-return]

    @dropout.setter
    def dropout(self, value: float) -> None:
        self.__dict__["dropout"] = value

    @property
    def training(self) -> bool:  # type: ignore[override]
        return _KERNEL_TRAINS in self.__dict__ or Held.training.fget(self)  # type: ignore[attr-defined, no-any-return]

    @training.setter
    def training(self, mode: bool) -> None:
        Held.training.fset(self, mode)  # type: ignore[attr-defined]

    def forward(self, input: Any, hx: Any = None) -> Any:
        if not _is_held(self) or not _needs_input_gradient(input, hx):
            return super().forward(input, hx)
        self.__dict__[_KERNEL_TRAINS] = True
        try:
            return super().forward(input, hx)
        finally:
            del self.__dict__[_KERNEL_TRAINS]


def _needs_input_gradient(*inputs: Any) -> bool:
    if not torch.is_grad_enabled():
        return False
    flat = [i for given in inputs for i in (given if isinstance(given, tuple) else (given,))]
    return any(isinstance(i, Tensor) and i.requires_grad for i in flat)


class HeldFastPath(Held):
    """Transformer layers choose a fused kernel by ``requires_grad``; freezing must not choose it.

    Under the fast path padded positions become exactly 0 and the rest moves by rounding. A layer
    whose parameters were trainable before the freeze took the slow path with gradients enabled,
    and goes on taking it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not self._slow_before() or not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return super().forward(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)

    def _slow_before(self) -> bool:
        if not _is_held(self):
            return False
        records = [record for m in self.modules() if (record := _record(m)) is not None]
        return any(record.freed_gradients for record in records)


class HeldObserver(Held):
    """An observer that is held hands its input through and records nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x if _is_held(self) else super().forward(x)  # type: ignore[no-any-return]


class HeldFakeQuantize(Held):
    """Reads ``observer_enabled`` as 0 while held; the buffer keeps its value for the state dict."""

    @property
    def observer_enabled(self) -> Tensor:
        buffers = self.__dict__.get("_buffers", {})
        if "observer_enabled" not in buffers:
            raise AttributeError("observer_enabled")
        value: Tensor = buffers["observer_enabled"]
        return torch.zeros_like(value) if _is_held(self) else value


class HeldCheckpointing(Held):
    """Layers of transformers checkpoint only in training mode; a held one goes on doing so.

    The gate is open for the one question that the layer's ``__call__`` asks, and closed again
    before its forward runs, so that dropout in there stays off.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__
        record = _record(self)
        if record is None or not record.eval or not own.get(ASKED, record.was_training):
            return super().__call__(*args, **kwargs)
        own[_GATE] = True
        try:
            return super().__call__(*args, **kwargs)
        finally:
            own.pop(_GATE, None)

    @property
    def training(self) -> bool:  # type: ignore[override]
        return _GATE in self.__dict__ or Held.training.fget(self)  # type: ignore[attr-defined, no-any-return]

    @training.setter
    def training(self, mode: bool) -> None:
        Held.training.fset(self, mode)  # type: ignore[attr-defined]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.pop(_GATE, None)
        return super().forward(*args, **kwargs)


_NN = "torch.nn.modules."
_AO = "torch.ao.quantization."

# Full name of a class -> the machinery that holds it and its subclasses.
_HOLDERS: dict[str, type[Held]] = {
    f"{_NN}batchnorm._NormBase": HeldNorm,
    f"{_NN}instancenorm._InstanceNorm": HeldInstanceNorm,
    f"{_NN}sparse.Embedding": HeldEmbedding,
    f"{_NN}sparse.EmbeddingBag": HeldEmbeddingBag,
    f"{_NN}rnn.RNNBase": HeldRNN,
    f"{_NN}activation.MultiheadAttention": HeldFastPath,
    f"{_NN}transformer.TransformerEncoder": HeldFastPath,
    f"{_NN}transformer.TransformerEncoderLayer": HeldFastPath,
    f"{_AO}observer.ObserverBase": HeldObserver,
    f"{_AO}fake_quantize.FakeQuantizeBase": HeldFakeQuantize,
    "transformers.modeling_layers.GradientCheckpointingLayer": HeldCheckpointing,
}


def full_name(cls: type) -> str:
    """Module and qualified name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def machinery_for(base: type[nn.Module]) -> type[Held]:
    """The machinery for ``base``: the registered one, or one that compares its first forward."""
    known = registered(base)
    if known is not None:
        return known
    return Held if base.__module__.startswith("torch.nn.") else Watched


def registered(cls: type[nn.Module]) -> type[Held] | None:
    """The registered machinery for ``cls`` or the nearest of its bases, or None."""
    for ancestor in cls.__mro__:
        if full_name(ancestor) in _HOLDERS:
            return _HOLDERS[full_name(ancestor)]
    return None


def needs_machinery(module: nn.Module) -> bool:
    """Whether ``module`` must be swapped although its code may not read ``training``."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.max_norm is not None
    known = registered(type(module))
    return known is not None and known is not HeldFastPath


def writes_to_itself(module: nn.Module) -> bool:
    """Whether ``module`` belongs to those that are held with ``mode="follow"`` too."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.max_norm is not None
    known = registered(type(module))
    if known is not None:
        return known in (HeldNorm, HeldInstanceNorm, HeldObserver, HeldFakeQuantize) or (
            known.__name__ == _BY_FUNCTION
        )
    return any(buffer is not None for buffer in module._buffers.values())


_BY_FUNCTION = "HeldByFunction"


def register_holder(cls: type[nn.Module], forward: Callable[..., Any]) -> None:
    """Say how modules of ``cls`` are held, if they write to themselves even in eval mode.

    Args:
        cls: the class; its subclasses count too.
        forward: called as ``forward(module, *inputs)`` in place of the module's own forward while
            it is held. It must compute the eval output and write nothing.

    Raises:
        ValueError: if modules of this class were frozen already, or a holder is known.

    Example:
        >>> class Counter(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("calls", torch.zeros(()))
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x
        >>> register_holder(Counter, lambda module, x: x)
    """
    name = full_name(cls)
    if name in _HOLDERS or any(issubclass(s, Held) for s in type.__subclasses__(cls)):
        raise ValueError(
            f"{name} has a holder already or was frozen before; register it once, before freezing"
        )

    def held_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _is_held(self):
            return forward(self, *args, **kwargs)
        return super(holder, self).forward(*args, **kwargs)

    holder: type[Held] = type(_BY_FUNCTION, (Held,), {"forward": held_forward})
    _HOLDERS[name] = holder
