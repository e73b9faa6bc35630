"""Modules that write to their own tensors and are no norms: in training mode, or in every mode."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm

from frostline.behaviours.doing import Doing, Iterated, Observed, Shortened
from frostline.freezing.record import is_held

_ITERATED = "[one step of the power iteration]"
_ROUNDING = 1e-5


def embedding(module: nn.Module, training: bool) -> Doing:
    """Embedding and EmbeddingBag: with max_norm they shorten what they look up, in every mode."""
    own: Any = module
    if own.max_norm is None:
        return Doing("looks rows up")
    if is_held(module):
        return Doing(f"looks rows up, and shortens copies of them to length {own.max_norm:g}")
    if not own.weight.requires_grad and _fits(own):
        return Doing(f"looks rows up, none of them longer than {own.max_norm:g}")
    shortened = f"[rows that it looks up, shortened to length {own.max_norm:g}]"
    written = Shortened("weight", shortened)
    return Doing("looks rows up, in every mode shortened first", writes=(written,))


def _fits(embedding: nn.Embedding | nn.EmbeddingBag) -> bool:
    """Whether every row is shorter than ``max_norm`` by more than rounding."""
    weight = embedding.weight.detach()
    if weight.is_meta or embedding.max_norm is None:
        return False
    longest = weight.norm(embedding.norm_type, dim=1).max() if weight.numel() else 0.0
    return float(longest) < embedding.max_norm * (1 - _ROUNDING)


def spectral_norm(module: nn.Module, training: bool) -> Doing:
    """The parametrisation (Miyato et al. 2018)."""
    if not training:
        return Doing("divides the weight by its largest singular value, by _u and _v")
    return Doing(
        "divides the weight by its largest singular value, estimated anew",
        writes=(Iterated("_u", _ITERATED), Iterated("_v", _ITERATED)),
    )


def hooked_spectral_norm(module: nn.Module, training: bool) -> Doing | None:
    """The old ``torch.nn.utils.spectral_norm``, a hook; None where there is none."""
    names = [h.name for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm)]
    if not names:
        return None
    if not training:
        return Doing("divides its weight by the largest singular value, by the vectors it has")
    vectors = [f"{name}_{letter}" for name in names for letter in "uv"]
    return Doing(
        "divides its weight by the largest singular value, estimated anew",
        writes=tuple(Iterated(vector, _ITERATED) for vector in vectors),
    )


def observer(module: nn.Module, training: bool) -> Doing:
    """Observers of quantisation, which watch in every mode."""
    if is_held(module):
        return Doing("passes its input on")
    kept = [name for name in ("min_val", "max_val", "histogram") if name in module._buffers]
    writes = tuple(Observed(name, "[what it saw, its input included]") for name in kept)
    return Doing("passes its input on, and in every mode notes its range", writes=writes)


def is_switched_off(within: nn.Module | None) -> bool:
    """Whether an observer in this module is not called: that of a FakeQuantize switched off."""
    enabled = within._buffers.get("observer_enabled") if within is not None else None
    return enabled is not None and not enabled.is_meta and not bool(enabled[0])


def fake_quantize(module: nn.Module, training: bool) -> Doing:
    """FakeQuantize: its scale follows its observer in every mode, unless that is switched off."""
    enabled: Any = module.observer_enabled
    words = "rounds its input to the quantised grid"
    # On the meta device nobody knows; it is on unless somebody switched it off.
    if is_held(module) or not (enabled.is_meta or bool(enabled[0])):
        return Doing(words)
    writes = tuple(
        Observed(name, "[from the range that its observer saw]") for name in ("scale", "zero_point")
    )
    return Doing(f"{words}, which in every mode follows the observer", writes=writes)


def quantised_batch_norm(module: nn.Module, training: bool) -> Doing:
    """ConvBn of quantisation-aware training: the norm in it writes, the layer itself does not."""
    return Doing("scales its weight by the running variance of its norm, then convolves")
