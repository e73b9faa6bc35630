"""How modules are held whose eval mode is not enough, and which ones are known.

Found by the full name of a class in the module's MRO, so that nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from frostline.freezing.held_embeddings import HeldEmbedding, HeldEmbeddingBag
from frostline.freezing.held_gates import HeldCheckpointing, HeldFastPath, HeldRNN
from frostline.freezing.held_norms import HeldInstanceNorm, HeldNorm
from frostline.freezing.held_observers import HeldFakeQuantize, HeldObserver
from frostline.freezing.machinery import Held
from frostline.freezing.record import is_held

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


def writes_in_eval(module: nn.Module) -> bool:
    """Whether eval mode alone would not stop ``module`` from writing to itself."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.max_norm is not None
    return registered(type(module)) in (HeldObserver, HeldFakeQuantize)


def writes_to_itself(module: nn.Module) -> bool:
    """Whether ``module`` belongs to those that are held with ``mode="follow"`` too."""
    known = registered(type(module))
    if known is not None:
        norm = known in (HeldNorm, HeldInstanceNorm)
        return norm or known.__name__ == _BY_FUNCTION or writes_in_eval(module)
    return any(buffer is not None for buffer in module._buffers.values())


def tracks_statistics(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation layer with running statistics."""
    buffers = module._buffers  # those of a scripted module are no dict
    return (
        "running_var" in buffers
        and "running_mean" in buffers
        and (buffers["running_mean"] is not None)
    )


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
        if is_held(self):
            return forward(self, *args, **kwargs)
        return super(holder, self).forward(*args, **kwargs)  # type: ignore[misc]

    holder: type[Held] = type(_BY_FUNCTION, (Held,), {"forward": held_forward})
    _HOLDERS[name] = holder
