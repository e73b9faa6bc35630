"""Every layer of torch.nn with constructor arguments and inputs, found by its name.

A layer that torch adds is in `names()` and fails the tests until it has a row here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import FrostlineWarning

# What is no layer: containers, abstract bases, losses, and what has no parameters before a call.
_NO_LAYER = re.compile(
    r"Module|Container|Sequential|ModuleList|ModuleDict|ParameterList|ParameterDict|Lazy.*|.*Loss(2d)?"
    r"|RNNBase|RNNCellBase|DataParallel|Transformer(De|En)coder|AdaptiveLogSoftmaxWithLoss"
)
# SyncBatchNorm has no CPU kernel.
_NO_CPU = {"SyncBatchNorm"}


def names() -> list[str]:
    """Every layer of torch.nn that runs on a CPU."""
    classes = [c for c in vars(nn).values() if isinstance(c, type) and issubclass(c, nn.Module)]
    return sorted({c.__name__ for c in classes if not _NO_LAYER.fullmatch(c.__name__)} - _NO_CPU)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 1.5 + 0.4


def _spatial(name: str) -> tuple[int, ...]:
    return (8,) * int(name[-2])


# Pattern of the name -> constructor arguments.
_ARGUMENTS: list[tuple[str, tuple[Any, ...]]] = [
    (r"Conv(Transpose)?\dd", (4, 4, 3)),
    (r"BatchNorm\dd", (4,)),
    (r"InstanceNorm\dd", (4, 1e-5, 0.1, True, True)),
    (r"Fractional.*", (2, 3)),
    (r"Adaptive.*Pool\dd", (2,)),
    (r"LPPool\dd", (2, 2)),
    (r".*Pool\dd|MaxUnpool\dd", (2,)),
    (r"ConstantPad\dd", (1, 0.3)),
    (r".*Pad\dd", (1,)),
    (r"Linear", (6, 6)),
    # Wide enough that another kernel rounds differently.
    (r"(RNN|LSTM|GRU)(Cell)?", (48, 48)),
    (r"Bilinear", (6, 6, 3)),
    (r"Embedding(Bag)?", (9, 6)),
    (r"GroupNorm", (2, 4)),
    (r"LayerNorm|RMSNorm", (6,)),
    (r"LocalResponseNorm|CrossMapLRN2d", (2,)),
    (r"MultiheadAttention", (6, 2)),
    (r"Transformer(En|De)coderLayer", (6, 2, 12)),
    (r"PixelShuffle|PixelUnshuffle|ChannelShuffle", (2,)),
    (r"Fold", ((4, 4), 2)),
    (r"Unfold", (2,)),
    (r"Unflatten", (1, (2, 3))),
    (r"Upsampl.*", (None, 2)),
    (r"Threshold", (0.1, 0.5)),
    (r"Softmax|LogSoftmax|Softmin", (1,)),
]


def build(name: str) -> nn.Module:
    """The layer, in eval mode."""
    if name == "Transformer":
        return nn.Transformer(*(6, 2, 1, 1, 12), batch_first=True).eval()
    for pattern, arguments in _ARGUMENTS:
        if re.fullmatch(pattern, name):
            return getattr(nn, name)(*arguments).eval()
    return getattr(nn, name)().eval()


def inputs(name: str) -> tuple[Any, ...]:
    """Inputs that the layer takes, always the same."""
    images = draw(2, 4, 8, 8)
    special: dict[str, tuple[Any, ...]] = {
        "Bilinear": (draw(3, 6), draw(3, 6)),
        "CosineSimilarity": (draw(3, 6), draw(3, 6)),
        "PairwiseDistance": (draw(3, 6), draw(3, 6)),
        "Embedding": (torch.tensor([[1, 2], [8, 0]]),),
        "EmbeddingBag": (torch.tensor([[1, 2], [8, 0]]),),
        "GroupNorm": (images,),
        "MultiheadAttention": (draw(5, 3, 6),) * 3,
        "TransformerDecoderLayer": (draw(5, 3, 6), draw(4, 3, 6)),
        "Transformer": (draw(5, 3, 6), draw(5, 4, 6)),
        "TransformerEncoderLayer": (draw(5, 3, 6),),
        "Fold": (draw(2, 16, 9),),
        "Unfold": (images,),
    }
    if name in special:
        return special[name]
    if match := re.fullmatch(r"MaxUnpool(\d)d", name):
        pool = getattr(nn, f"MaxPool{match[1]}d")(2, return_indices=True)
        return tuple(pool(draw(2, 4, *_spatial(name))))
    if re.search(r"\dd$", name):
        return (draw(2, 4, *_spatial(name)),)
    if re.fullmatch(r"Pixel.*|Channel.*|LocalResponseNorm|Upsampl.*|Softmax2d", name):
        return (images,)
    if name in ("RNN", "LSTM", "GRU"):
        return (draw(5, 3, 48),)
    return (draw(3, 48),) if name.endswith("Cell") else (draw(3, 6),)


@contextmanager
def quiet_about_fresh_norms() -> Iterator[None]:
    """A single norm that was never trained is what `freeze` warns of, and no finding here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*never trained.*", FrostlineWarning)
        yield
