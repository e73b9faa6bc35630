"""Small models that write to themselves in ways that the zoo's do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn.utils import parametrizations, spectral_norm

from tests.guarding.causes.cause_harness import Live


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def _frozen(model: nn.Module, batch: Tensor) -> Live:
    model.train()
    for _ in range(2):
        model(batch)
    model.requires_grad_(False)
    return Live(model, batch, loss)


def spectral() -> Live:
    return _frozen(parametrizations.spectral_norm(nn.Linear(16, 16)), torch.randn(4, 16))


def old_spectral() -> Live:
    return _frozen(spectral_norm(nn.Linear(16, 16)), torch.randn(4, 16))


def embedding() -> Live:
    model = nn.Embedding(50, 16, max_norm=1.0)
    model.requires_grad_(False)
    return Live(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), loss)


def quantized() -> Live:
    observer = MovingAverageMinMaxObserver
    model = FakeQuantize(observer, quant_min=0, quant_max=255, dtype=torch.quint8)
    return _frozen(model, torch.randn(4, 16))


class Codebook(nn.Module):
    """Vector quantisation whose codes follow their inputs, as published code writes it."""

    def __init__(self) -> None:
        super().__init__()
        codes = torch.randn(8, 16)
        self.register_buffer("codes", codes)
        self.register_buffer("sizes", torch.ones(8))
        self.register_buffer("sums", codes.clone())

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.codes).argmin(1)
        if self.training:
            hit = nn.functional.one_hot(nearest, 8).to(x.dtype)
            self.sizes.data.mul_(0.9).add_(hit.sum(0), alpha=0.1)
            self.sums.data.mul_(0.9).add_(hit.t() @ x, alpha=0.1)
            self.codes.data.copy_(self.sums / self.sizes.unsqueeze(1))
        return self.codes[nearest]


def codebook() -> Live:
    return _frozen(Codebook(), torch.randn(4, 16))


class Queue(nn.Module):
    """A queue of keys that is written from a pointer on, as momentum contrast has it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(16, 32))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ self.queue
        at = int(self.pointer)
        self.queue[:, at : at + len(x)] = x.detach().T
        self.pointer[0] = (at + len(x)) % self.queue.shape[1]
        return scores


def queue() -> Live:
    return _frozen(Queue(), torch.randn(4, 16))


class LoRALinear(nn.Linear):
    """Low-rank adaptation that merges when it goes into eval mode, as loralib does."""

    def __init__(self) -> None:
        super().__init__(32, 32)
        self.lora_A = nn.Parameter(torch.randn(2, 32) * 0.1)
        self.lora_B = nn.Parameter(torch.randn(32, 2) * 0.1)
        self.merged = False

    def merge(self) -> None:
        self.weight.data += self.lora_B.data @ self.lora_A.data
        self.merged = True

    def unmerge(self) -> None:
        self.weight.data -= self.lora_B.data @ self.lora_A.data
        self.merged = False


def lora() -> Live:
    model = LoRALinear()
    model.weight.requires_grad_(False)
    return Live(model, torch.randn(4, 32), loss)


def peft_lora() -> Live:
    import peft

    with torch.no_grad():
        model = peft.get_peft_model(
            nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4)),
            peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False),
        )
    return Live(model, torch.randn(4, 32), loss)


def averaged() -> Live:
    source = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
    model = torch.optim.swa_utils.AveragedModel(source, use_buffers=True)
    model.update_parameters(source)
    live = Live(model, torch.randn(4, 16), loss)
    live.past["source"] = source
    return live


def shared() -> Live:
    """A frozen view and a trainable parameter over the same bytes."""
    flat = torch.randn(64)
    model = nn.Module()
    model.frozen = nn.Parameter(flat[:32].view(4, 8), requires_grad=False)
    model.free = nn.Parameter(flat[16:])
    return Live(model, torch.randn(4), lambda m, _: m.free.square().sum())


def instance() -> Live:
    model = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    return _frozen(model, torch.randn(4, 8, 5, 5) + 1)


def cumulative() -> Live:
    return _frozen(nn.BatchNorm1d(16, momentum=None), torch.randn(8, 16) + 1)


def still() -> Live:
    return _frozen(nn.BatchNorm1d(16, momentum=0.0), torch.randn(8, 16) + 1)


def linear() -> Live:
    return _frozen(nn.Linear(16, 16), torch.randn(8, 16))
