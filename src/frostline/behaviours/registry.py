"""Which behaviour a module has: the table of known classes, and how to add to it.

Found by the full name of a class in the module's MRO, so that nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import nn

from frostline.behaviours import norms, randomness, self_writing
from frostline.behaviours.doing import Behaviour, Doing, Kind
from frostline.behaviours.unknown import by_code, question
from frostline.freezing import holders
from frostline.freezing.record import BATCH, is_held

Describe: TypeAlias = Callable[[nn.Module, bool], Doing]

_NN = "torch.nn.modules."
_AO = "torch.ao.quantization."

# Full name of a class -> what it is, and what it does in a mode. Its subclasses count too.
_KNOWN: dict[str, tuple[Kind, Describe]] = {
    f"{_NN}batchnorm._BatchNorm": ("norm", norms.batch_norm),
    f"{_NN}instancenorm._InstanceNorm": ("norm", norms.instance_norm),
    f"{_NN}normalization.GroupNorm": ("norm", norms.group_norm),
    f"{_NN}normalization.LayerNorm": ("norm", norms.layer_norm),
    f"{_NN}normalization.RMSNorm": ("norm", norms.rms_norm),
    f"{_NN}normalization.LocalResponseNorm": ("norm", norms.local_response_norm),
    f"{_NN}dropout._DropoutNd": ("random", randomness.dropout),
    f"{_NN}activation.RReLU": ("random", randomness.rrelu),
    f"{_NN}activation.MultiheadAttention": ("random", randomness.attention),
    f"{_NN}rnn.RNNBase": ("random", randomness.recurrent),
    f"{_NN}pooling.FractionalMaxPool2d": ("random", randomness.fractional_pool),
    f"{_NN}pooling.FractionalMaxPool3d": ("random", randomness.fractional_pool),
    f"{_NN}sparse.Embedding": ("writer", self_writing.embedding),
    f"{_NN}sparse.EmbeddingBag": ("writer", self_writing.embedding),
    "torch.nn.utils.parametrizations._SpectralNorm": ("writer", self_writing.spectral_norm),
    f"{_AO}observer.ObserverBase": ("writer", self_writing.observer),
    f"{_AO}fake_quantize.FakeQuantizeBase": ("writer", self_writing.fake_quantize),
    "torch.ao.nn.intrinsic.qat.modules.conv_fused._ConvBnNd": (
        "norm",
        self_writing.quantised_batch_norm,
    ),
    "timm.layers.drop.DropPath": ("random", randomness.drop_path),
    "torchvision.ops.stochastic_depth.StochasticDepth": ("random", randomness.drop_path),
}
# Every model of transformers has a copy of these under its own name.
_BY_ENDING: dict[str, tuple[Kind, Describe]] = {
    "RMSNorm": ("norm", norms.rms_norm),
    "RmsNorm": ("norm", norms.rms_norm),
    "T5LayerNorm": ("norm", norms.rms_norm),
    "DropPath": ("random", randomness.drop_path),
}


def behaviour(module: nn.Module, within: nn.Module | None = None) -> Behaviour | None:
    """What ``module`` itself does in each mode, without what is below it.

    None where there is nothing to say: the mode makes no difference to it, it draws no random
    numbers and writes nothing, and it is no norm.

    Args:
        module: any module.
        within: the module that it hangs in, where that is known: FakeQuantize decides whether its
            observer runs.

    Example:
        >>> doing = behaviour(nn.BatchNorm1d(4)).now
        >>> [str(write) for write in doing.writes][0]
        'running_mean <- 0.9 running_mean + 0.1 batch mean'
        >>> behaviour(nn.Linear(4, 2)) is None
        True
    """
    known = _known(module)
    if known is None:
        return _unknown(module)
    kind, describe = known
    if describe is self_writing.observer and self_writing.is_switched_off(within):
        return None
    held = is_held(module)
    in_eval = _with_hooks(module, False, describe(module, False))
    in_training = in_eval if held else _with_hooks(module, True, describe(module, True))
    if kind != "norm" and in_training == in_eval and not (in_eval.random or in_eval.writes or held):
        return None
    return Behaviour(kind, module.training, in_training, in_eval, held or BATCH in vars(module))


def register(cls: type[nn.Module], describe: Describe, *, kind: Kind = "norm") -> None:
    """Say what modules of ``cls`` do, for :func:`frostline.explain` and all that builds on it.

    Args:
        cls: the class; its subclasses count too.
        describe: called as ``describe(module, training)``; gives a :class:`Doing`. Those of
            :mod:`frostline.behaviours.norms` can be used as they are.
        kind: ``"norm"``, ``"random"`` or ``"writer"``.

    Raises:
        ValueError: if this class is known already.

    Example:
        >>> from frostline.behaviours import norms
        >>> class MyNorm(nn.Module):
        ...     eps = 1e-5
        >>> register(MyNorm, norms.layer_norm)
        >>> behaviour(MyNorm()).now.statistics
        'sample'
    """
    name = holders.full_name(cls)
    if name in _KNOWN:
        raise ValueError(f"{name} is known already; register a class once, when it is defined")
    _KNOWN[name] = (kind, describe)


def _known(module: nn.Module) -> tuple[Kind, Describe] | None:
    if isinstance(module, torch.jit.ScriptModule):
        return _of_class(getattr(nn, module.original_name, nn.Module))  # as which it was written
    found = _of_class(type(module))
    if found is not None:
        return ("norm", norms.running_statistics) if _ignores_the_mode(module) else found
    for ending, found in _BY_ENDING.items():
        if type(module).__name__.endswith(ending) and not holders.tracks_statistics(module):
            return found
    return ("norm", norms.running_statistics) if _ignores_the_mode(module) else None


def _of_class(cls: type) -> tuple[Kind, Describe] | None:
    names = (holders.full_name(ancestor) for ancestor in cls.__mro__)
    return next((_KNOWN[name] for name in names if name in _KNOWN), None)


def _ignores_the_mode(module: nn.Module) -> bool:
    """Whether it is a tracking norm with a forward of its own that does not ask for the mode."""
    cls = type(module)
    own = not cls.__module__.startswith("torch.") and holders.tracks_statistics(module)
    return own and question(cls) is None


def _unknown(module: nn.Module) -> Behaviour | None:
    if isinstance(module, torch.jit.ScriptModule):
        return None  # its code is no Python any more
    hooked = _hooked(module)
    found = hooked or by_code(module)
    if found is None:
        return _nameless_norm(module)
    in_training, in_eval = found
    held = is_held(module)
    return Behaviour(
        "writer" if hooked else "unknown",
        module.training,
        in_eval if held else in_training,
        in_eval,
        held,
        sure=hooked is not None,
    )


def _with_hooks(module: nn.Module, training: bool, own: Doing) -> Doing:
    hooked = self_writing.hooked_spectral_norm(module, training)
    return own if hooked is None else replace(own, writes=own.writes + hooked.writes)


def _hooked(module: nn.Module) -> tuple[Doing, Doing] | None:
    """What a hook that is known makes it do, in training and in eval mode."""
    in_training = self_writing.hooked_spectral_norm(module, True)
    in_eval = self_writing.hooked_spectral_norm(module, False)
    return None if in_training is None or in_eval is None else (in_training, in_eval)


def _nameless_norm(module: nn.Module) -> Behaviour | None:
    """A norm by its name alone, so that it is not missed where norms are listed."""
    if "norm" not in type(module).__name__.lower() or module._modules or module._buffers:
        return None
    same = Doing("normalises in its own way; by its code the mode makes no difference")
    return Behaviour("norm", module.training, same, same, sure=False)
