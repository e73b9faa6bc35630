"""What a forward writes that is no norm's statistic, and randomness: F48 to F57."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.auditing.cases import Case
from tests.auditing.faults.fault import (
    adamw,
    case,
    fault,
    flags_off,
    lived,
    running,
    sgd,
    trainable,
)
from tests.auditing.faults.nets import around, classes, squared, vectors
from tests.zoo import ZOO, live, seeded


class _Text(nn.Module):
    def __init__(self, **embedding: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, **embedding)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(1))


def _text() -> _Text:
    with seeded(7):
        model = live(_Text(max_norm=1.0))
    flags_off(model.embedding)
    return model.train()


def _ids() -> Tensor:
    return torch.randint(20, (6, 5), generator=torch.Generator().manual_seed(3))


@fault(48, "pytorch#26596")
def embedding_with_a_largest_norm() -> Case:
    model = _text()
    return case(model, _ids(), classes, "106", optimizer=sgd(trainable(model)))


@fault(48, "pytorch#28959")
def embedding_with_a_largest_norm_in_eval() -> Case:
    model = _text()
    model.embedding.eval()
    return case(model, _ids(), classes, "106", optimizer=sgd(trainable(model)))


class _Codebook(nn.Module):
    """A quantizer whose codes follow their inputs by a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.register_buffer("embed", torch.randn(5, 8))
        self.register_buffer("cluster_size", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        nearest = torch.cdist(x, self.embed).argmin(1)
        quantised = self.embed[nearest]
        if self.training:
            hits = F.one_hot(nearest, 5).to(x)
            self.cluster_size.data.mul_(0.9).add_(hits.sum(0), alpha=0.1)
            self.embed.data.lerp_((hits.t() @ x.detach()).to(self.embed), 0.1)
        return x + (quantised - x).detach()


def _frozen_part(make: Any) -> Any:
    model = around(make)
    flags_off(model.part)
    return model


@fault(49, "GPT-SoVITS#953")
def codebook_of_a_frozen_quantizer() -> Case:
    model = _frozen_part(_Codebook)
    return case(model, vectors(), classes, "108", optimizer=adamw(trainable(model)))


@fault(49, "vector-quantize-pytorch#167")
def codebook_in_eval_until_train() -> Case:
    model = _frozen_part(_Codebook)
    model.part.eval()
    return case(model, vectors(), classes, "102", optimizer=adamw(trainable(model)))


def _spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.LeakyReLU(0.2))


@fault(50, "the generator's step of a GAN with spectral norm")
def discriminator_iterates_while_the_generator_trains() -> Case:
    model = _frozen_part(_spectral)
    return case(model, vectors(), classes, "104", optimizer=adamw(trainable(model)))


@fault(50, "the older torch.nn.utils.spectral_norm")
def old_spectral_norm() -> Case:
    model = _frozen_part(lambda: nn.utils.spectral_norm(nn.Linear(8, 8)))
    return case(model, vectors(), classes, "104", optimizer=adamw(trainable(model)))


def _quantised() -> nn.Module:
    from torch.ao.quantization import FakeQuantize

    return nn.Sequential(nn.Linear(8, 8), FakeQuantize())


@fault(51, "sparseml#1206")
def fake_quantisation_observes_in_training() -> Case:
    model = _frozen_part(_quantised)
    return case(model, vectors(), classes, "107", optimizer=sgd(trainable(model)))


@fault(51, "PL#8540")
def fake_quantisation_observes_in_eval() -> Case:
    model = _frozen_part(_quantised)
    model.part.eval()
    return case(model, vectors(), classes, "107", optimizer=sgd(trainable(model)))


class _Experts(nn.Module):
    """A router whose selection is balanced by a bias that nobody differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.register_buffer("expert_bias", torch.zeros(3))
        self.register_buffer("tokens_per_expert", torch.tensor([3.0, 2.0, 1.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        chosen = (scores + self.expert_bias).argmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return outputs[torch.arange(len(x)), chosen] * scores.amax(-1, keepdim=True)


@fault(52, "torchtitan's _update_expert_bias")
def hook_of_the_optimizer_balances_a_frozen_router() -> Case:
    model = _frozen_part(_Experts)
    optimizer = adamw(trainable(model))

    def balance(*_: Any) -> None:
        load = model.part.tokens_per_expert
        model.part.expert_bias.add_(0.01 * (load.mean() - load).sign())

    optimizer.register_step_pre_hook(balance)
    return case(model, vectors(), classes, "111", optimizer=optimizer)


@fault(52, "prime-rl#2953")
def frozen_router_that_somebody_may_balance() -> Case:
    model = _frozen_part(_Experts)
    return case(model, vectors(), classes, "111", optimizer=adamw(trainable(model)))


class _Contrast(nn.Module):
    """A key encoder that follows the query encoder by a moving average inside of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 4)
        self.key = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.data = slow.data * 0.99 + fast.data * 0.01
        return self.query(x) @ self.key(x).detach().t()


@fault(53, "MoCo's momentum encoder")
def key_encoder_follows_in_forward() -> Case:
    with seeded(7):
        model = live(_Contrast()).train()
    flags_off(model.key)
    return case(model, vectors(), squared, "100", optimizer=sgd(trainable(model)))


class _ActNorm(nn.Module):
    """Scale and shift are set from the first batch that it sees, in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(8))
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("initialised", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if not self.initialised:
            with torch.no_grad():
                self.loc.data.copy_(-x.mean(0))
                self.scale.data.copy_(1 / (x.std(0) + 1e-6))
                self.initialised.fill_(1)
        return self.scale * (x + self.loc)


def _no_life(make: Any) -> Any:
    with seeded(7):
        from tests.auditing.faults.nets import Around

        model = Around(make()).train()
    flags_off(model.part)
    return model


@fault(53, "ActNorm, initialised by data")
def first_batch_initialises_a_frozen_layer() -> Case:
    model = _no_life(lambda: nn.Sequential(nn.Linear(8, 8), _ActNorm()))
    model.part.eval()
    return case(model, vectors(), classes, "108", optimizer=adamw(trainable(model)))


class _Peak(nn.Module):
    """Scales by the largest value so far, which no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("peak", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.peak.mul_(0.9).add_(0.1 * x.detach().abs().max())
        return self.linear(x) / self.peak.clone()


class _Attribute(nn.Module):
    """Keeps its running mean in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.mean = torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.linear(x - self.mean)


@fault(54, "a buffer with persistent=False")
def statistic_outside_of_the_state_dict() -> Case:
    model = _frozen_part(_Peak)
    return case(model, vectors(), classes, "108", "401", optimizer=adamw(trainable(model)))


@fault(54, "a tensor that is no buffer")
def statistic_in_a_plain_attribute() -> Case:
    model = _frozen_part(_Attribute)
    model.part.eval()
    return case(model, vectors(), classes, "108", "401", optimizer=adamw(trainable(model)))


@fault(55, "wav2vec2's freeze_base_model")
def layer_drop_in_a_frozen_base() -> Case:
    entry = ZOO["wav2vec2"]
    model = lived(entry)
    model.freeze_base_model()
    return running(entry, model, "103", optimizer=adamw(trainable(model)))


@fault(55, "audio#1995")
def dropout_in_a_frozen_encoder() -> Case:
    entry = ZOO["transformer"]
    model = lived(entry)
    flags_off(model.encoder)
    return running(entry, model, "103", optimizer=adamw(trainable(model)))


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.3)


@fault(56, "IBL_MtM_model#13")
def dropout_by_function_in_eval() -> Case:
    model = _frozen_part(_Functional)
    model.part.eval()
    return case(model, vectors(), classes, "601", optimizer=adamw(trainable(model)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).view(len(x), 3, 2, 4).unbind(1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.3).flatten(1)


@fault(56, "scaled_dot_product_attention(dropout_p=...)")
def dropout_of_attention_in_eval() -> Case:
    model = _frozen_part(_Attention)
    model.part.eval()
    return case(model, vectors(), classes, "601", optimizer=adamw(trainable(model)))


class _Adapting(nn.Module):
    """Follows its inputs at test time, and only then."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("mean", torch.full((8,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if not self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean.clone()


@fault(57, "adaptation at test time")
def statistic_that_follows_in_eval() -> Case:
    model = _frozen_part(_Adapting)
    model.part.eval()
    return case(model, vectors(), classes, "108", optimizer=adamw(trainable(model)))
