"""Every kind of module that a freeze must hold, as the middle of a small net that trains.

The net is `stem` (trainable where its input is real numbers), `part` (to be frozen) and `head`
(trainable, with a norm that follows). `writes` says what a plain training forward does to the
part when it is frozen by flag only: the controls of the hold table hang on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.zoo import live, seeded

BATCH = 6


@dataclass(frozen=True)
class Kind:
    """A kind of module.

    Attributes:
        make: the module; its output is flattened for the head.
        inputs: one batch, the same at every call.
        writes: a training forward writes to it although no parameter requires gradients.
        norm: it has running statistics that `reset_running_stats` resets.
        parameters: it has parameters of its own, which an optimizer could move.
        stem: something trainable can stand before it.
        pickles: torch lets it be pickled; parametrised modules it does not.
        vmap: torch can map it over a dimension in eval mode.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    writes: bool = False
    norm: bool = False
    parameters: bool = True
    stem: bool = True
    pickles: bool = True
    vmap: bool = True


class Head(nn.Sequential):
    """Flattens, normalises with a norm that stays trainable, and ends in two logits."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.Flatten(), nn.BatchNorm1d(features), nn.Linear(features, 2))


class Net(nn.Module):
    """The frozen part between a trainable stem and a trainable head."""

    def __init__(self, stem: nn.Module, part: nn.Module, features: int) -> None:
        super().__init__()
        self.stem = stem
        self.part = part
        self.head = Head(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.stem(x)).float())


class RootNet(Net):
    """The frozen tensors hang on the root itself, as `cls_token` does in a ViT."""

    def __init__(self, stem: nn.Module, part: nn.Module, features: int) -> None:
        super().__init__(stem, part, features)
        self.cls_token = nn.Parameter(torch.randn(1, 4))
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.stem(x) + self.cls_token) * self.scale)


ROOT_TENSORS = ("cls_token", "scale")


def build(kind: str, *, fresh: bool = False) -> Net:
    """A net around this kind, with a life behind it: lived statistics and one training step."""
    entry = KINDS[kind]
    with seeded(3), warnings.catch_warnings():
        # The old weight_norm says that it is old; that it holds is asked all the same.
        warnings.simplefilter("ignore", FutureWarning)
        part, x = entry.make(), entry.inputs()
        features = part.eval()(x.clone()).reshape(BATCH, -1).shape[1]
        part = entry.make()
        cls = RootNet if kind == "root parameters" else Net
        stem = nn.Linear(x.shape[-1], x.shape[-1]) if entry.stem else nn.Identity()
        net = live(cls(stem, part, features)).train()
        if not fresh:
            step(net, x, torch.optim.SGD(net.parameters(), lr=0.05))
    net.zero_grad()
    assert isinstance(net, Net)
    return net


def step(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Forward, backward and one optimizer step; no `zero_grad`."""
    F.cross_entropy(net(x), torch.arange(BATCH) % 2).backward()
    if optimizer is not None:
        optimizer.step()


# --- modules that libraries write like this, and that write to themselves in training ---------


class Codebook(nn.Module):
    """Vector quantisation whose codebook follows the inputs by a moving average (VQ-VAE)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embed", torch.randn(5, 4))
        self.register_buffer("cluster_size", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.embed).argmin(1)
        if self.training:
            hits = F.one_hot(nearest, 5).to(x)
            self.cluster_size.data.mul_(0.9).add_(hits.sum(0), alpha=0.1)
            self.embed.data.lerp_((hits.t() @ x.detach()).to(self.embed), 0.1)
        return x + (self.embed[nearest] - x).detach()


class ReboundCodebook(Codebook):
    """The same, but each update makes a new tensor."""

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.embed).argmin(1)
        if self.training:
            hits = F.one_hot(nearest, 5).to(x)
            self.cluster_size = self.cluster_size * 0.9 + hits.sum(0) * 0.1
            self.embed = torch.lerp(self.embed, (hits.t() @ x.detach()).to(self.embed), 0.1)
        return x + (self.embed[nearest] - x).detach()


class BiasedRouter(nn.Module):
    """A mixture of experts whose selection bias balances the load (no gradient involved)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.e_score_correction_bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        chosen = (scores + self.e_score_correction_bias).argmax(-1)
        if self.training:
            load = F.one_hot(chosen, 3).float().mean(0)
            with torch.no_grad():
                self.e_score_correction_bias += 0.01 * (1 / 3 - load).sign()
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return outputs[torch.arange(len(x)), chosen] * scores.amax(-1, keepdim=True)


class CallCounter(nn.Module):
    """Counts its training calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.linear(x)


class RunningScale(nn.Module):
    """Asks its parent's mode through a function and keeps a statistic that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = CallCounter()
        self.register_buffer("peak", torch.ones(()), persistent=False)

    def _observe(self, x: Tensor) -> None:
        self.peak.copy_(torch.maximum(self.peak, x.detach().abs().max() + self.peak / 10))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._observe(x)
        return self.inner(x) / self.peak.clone()


class Float32(nn.Module):
    """Some observers take nothing else, and autocast gives something else."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class FirstOutput(nn.Module):
    """Hands on the sequence of a module that returns more than that."""

    def __init__(self, module: nn.Module, masks: bool = False) -> None:
        super().__init__()
        self.module_ = module
        self.needs_three = masks

    def forward(self, x: Tensor) -> Tensor:
        out = self.module_(x, x, x) if self.needs_three else self.module_(x)
        return out[0]


def _wav2vec2() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(4,),
        conv_kernel=(10,),
        conv_stride=(5,),
        num_feat_extract_layers=1,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.5,
        mask_time_prob=0.5,
        mask_time_length=2,
    )
    return FirstOutput(Wav2Vec2Model(config))


def _drop_path() -> nn.Module:
    from timm.layers import DropPath

    return nn.Sequential(nn.Linear(4, 4), DropPath(0.5))


def _norm_act() -> nn.Module:
    from timm.layers import BatchNormAct2d

    return nn.Sequential(nn.Conv2d(2, 3, 1), BatchNormAct2d(3))


def _fake_quantize() -> nn.Module:
    from torch.ao.quantization import FakeQuantize

    return nn.Sequential(nn.Linear(4, 4), FakeQuantize())


def _fused_fake_quantize() -> nn.Module:
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

    return nn.Sequential(nn.Linear(4, 4), Float32(), FusedMovingAvgObsFakeQuantize())


def _observers() -> nn.Module:
    from torch.ao.quantization import (
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        PerChannelMinMaxObserver,
    )

    return nn.Sequential(
        nn.Linear(4, 4),
        MinMaxObserver(),
        MovingAverageMinMaxObserver(),
        PerChannelMinMaxObserver(),
    )


def _histogram() -> nn.Module:
    from torch.ao.quantization import HistogramObserver

    return nn.Sequential(nn.Linear(4, 4), Float32(), HistogramObserver(bins=16))


def _numbers(*shape: int) -> Callable[[], Tensor]:
    def inputs() -> Tensor:
        return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(5)) * 1.5 + 0.4

    return inputs


def _ids() -> Tensor:
    return torch.randint(0, 10, (BATCH, 3), generator=torch.Generator().manual_seed(5))


def _conv(norm: Callable[[], nn.Module], dims: int) -> Callable[[], nn.Module]:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return lambda: nn.Sequential(conv(2, 3, 1), norm())


def _dense(module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 4), module())


_FLAT, _SEQUENCE = _numbers(4), _numbers(3, 4)
_TRACKED = {"affine": True, "track_running_stats": True}

KINDS: dict[str, Kind] = {
    "BatchNorm1d": Kind(_dense(lambda: nn.BatchNorm1d(4)), _FLAT, writes=True, norm=True),
    "BatchNorm2d": Kind(
        _conv(lambda: nn.BatchNorm2d(3), 2), _numbers(2, 3, 3), writes=True, norm=True
    ),
    "BatchNorm3d": Kind(
        _conv(lambda: nn.BatchNorm3d(3), 3), _numbers(2, 2, 2, 2), writes=True, norm=True
    ),
    "BatchNorm, cumulative": Kind(
        _dense(lambda: nn.BatchNorm1d(4, momentum=None)), _FLAT, writes=True, norm=True
    ),
    "BatchNorm, no affine": Kind(
        lambda: nn.BatchNorm1d(4, affine=False), _FLAT, writes=True, norm=True, parameters=False
    ),
    "SyncBatchNorm": Kind(
        _conv(lambda: nn.SyncBatchNorm(3), 2), _numbers(2, 3, 3), writes=True, norm=True
    ),
    "timm BatchNormAct2d": Kind(_norm_act, _numbers(2, 3, 3), writes=True, norm=True),
    "InstanceNorm1d, tracking": Kind(
        _conv(lambda: nn.InstanceNorm1d(3, **_TRACKED), 1), _numbers(2, 5), writes=True, norm=True
    ),
    "InstanceNorm2d, tracking": Kind(
        _conv(lambda: nn.InstanceNorm2d(3, **_TRACKED), 2),
        _numbers(2, 3, 3),
        writes=True,
        norm=True,
    ),
    "InstanceNorm3d, tracking": Kind(
        _conv(lambda: nn.InstanceNorm3d(3, **_TRACKED), 3),
        _numbers(2, 2, 2, 2),
        writes=True,
        norm=True,
    ),
    "Dropout": Kind(_dense(lambda: nn.Dropout(0.5)), _FLAT),
    "DropPath": Kind(_drop_path, _FLAT),
    "LayerDrop and SpecAugment": Kind(_wav2vec2, _numbers(100), stem=False, pickles=False),
    "spectral_norm, old": Kind(lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), _FLAT, writes=True),
    "spectral_norm": Kind(
        lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), _FLAT, writes=True, pickles=False
    ),
    "weight_norm, old": Kind(lambda: nn.utils.weight_norm(nn.Linear(4, 4)), _FLAT),
    "weight_norm": Kind(
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)), _FLAT, pickles=False
    ),
    "VQ codebook": Kind(Codebook, _FLAT, writes=True, parameters=False),
    "VQ codebook, rebound": Kind(ReboundCodebook, _FLAT, writes=True, parameters=False),
    "FakeQuantize": Kind(_fake_quantize, _FLAT, writes=True),
    "FakeQuantize, fused": Kind(_fused_fake_quantize, _FLAT, writes=True, vmap=False),
    "observers": Kind(_observers, _FLAT, writes=True),
    "HistogramObserver": Kind(_histogram, _FLAT, writes=True, vmap=False),
    "Embedding(max_norm)": Kind(
        lambda: nn.Embedding(10, 4, max_norm=0.7), _ids, writes=True, stem=False
    ),
    "EmbeddingBag(max_norm)": Kind(
        lambda: nn.EmbeddingBag(10, 4, max_norm=0.7), _ids, writes=True, stem=False
    ),
    "MoE bias": Kind(BiasedRouter, _FLAT, writes=True),
    "call counter": Kind(CallCounter, _FLAT, writes=True),
    "non-persistent statistic": Kind(RunningScale, _FLAT, writes=True),
    "root parameters": Kind(lambda: nn.Linear(4, 4), _FLAT),
    "LSTM": Kind(
        lambda: FirstOutput(nn.LSTM(4, 3, 2, dropout=0.5, batch_first=True)), _SEQUENCE, vmap=False
    ),
    "TransformerEncoderLayer": Kind(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), _SEQUENCE
    ),
    "MultiheadAttention": Kind(
        lambda: FirstOutput(nn.MultiheadAttention(4, 2, 0.5, batch_first=True), masks=True),
        _SEQUENCE,
    ),
}
