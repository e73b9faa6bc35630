"""What cannot be exact is refused in words, and leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from frostline.accumulation.accumulate import accumulate
from frostline.errors import AccumulationError
from tests.accumulation.exact.case_models import (
    WIDTH,
    Beside,
    Branching,
    Classifier,
    Distilled,
    Shuffle,
    conv_norm,
)
from tests.accumulation.exact.cases import IMAGES, Batch, Case, Loss, cut
from tests.accumulation.exact.test_restored import everything
from tests.accumulation.exact.truth import assert_is_big_batch, run
from tests.zoo import classify, live, seeded

offloads = pytest.mark.parametrize("offload", [None, "disk"])


@dataclass(frozen=True)
class Refusal:
    """A model or a loss that cannot be exact.

    Attributes:
        name: for the reader.
        says: what the message names, a regular expression.
        make: the model.
        loss: `compute_loss(model, batch)`.
        batch: the big batch.
    """

    name: str
    says: str
    make: Callable[[], nn.Module] = Shuffle
    loss: Loss = classify
    batch: Callable[[], Batch] = IMAGES

    def __str__(self) -> str:
        return self.name

    def build(self) -> nn.Module:
        """Made anew each time: a scripted module has no copies that are like it."""
        with seeded(0):
            return live(self.make().double()).train()

    def microbatches(self) -> list[Batch]:
        return cut(Case(self.name, self.make, self.batch).big_batch(), [2, 2, 2, 2])


# --- losses ------------------------------------------------------------------------------------


def _functional_call(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    doubled = {name: 2 * p for name, p in model.named_parameters()}
    return F.cross_entropy(torch.func.functional_call(model, doubled, (images,)), labels)


def _penalty(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    images = images.detach().requires_grad_()
    logits = model(images)
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return F.cross_entropy(logits, labels) + slope.square().mean()


def _saliency(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """First derivatives only, used as a weight."""
    images, labels = batch
    images = images.detach().requires_grad_()
    logits = model(images)
    (slope,) = torch.autograd.grad(logits.sum(), images, retain_graph=True)
    weights = slope.flatten(1).norm(dim=1)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()


def _backward_inside(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss goes backward by itself, as people do who copy a loop."""
    loss = classify(model, batch)
    loss.backward(retain_graph=True)
    return loss


def _transformed_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def _vmap(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    images = torch.func.vmap(_transformed_norm)(images.unsqueeze(1)).squeeze(1)
    return F.cross_entropy(model(images), labels)


def _func_grad(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    slope = torch.func.grad(lambda x: _transformed_norm(x).square().sum())(images)
    return F.cross_entropy(model(images + slope), labels)


class _NormInside(torch.autograd.Function):
    """Runs a norm in its forward, and again in its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return module(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            ctx.module(x).backward(gradient)
        return x.grad, None


def _contrastive(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    embedded = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(embedded @ embedded.T, torch.arange(len(embedded)))


def _inference(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    with torch.inference_mode():
        model.teacher(images)
    return F.cross_entropy(model.student(images), labels)


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _inside(make: Callable[[], AbstractContextManager[Any]]) -> Loss:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with make():
            return classify(model, batch)

    return loss


# --- models ------------------------------------------------------------------------------------


class _Reentrant(Shuffle):
    def middle(self, x: Tensor) -> Tensor:
        return checkpoint(super().middle, x, use_reentrant=True)


class _OwnFunction(Beside):
    def __init__(self) -> None:
        super().__init__(conv_norm(WIDTH, WIDTH))

    def middle(self, x: Tensor) -> Tensor:
        return self.after(_NormInside.apply(x, self.layer))


class _HandWritten(nn.Module):
    """A batch norm in plain operations."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt()


class _Counting(nn.Module):
    """Counts its calls in a buffer, with which nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class _Codebook(nn.Module):
    """Averages of what it saw, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.average.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x


class _Native(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0]


def _scripted(**arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        norm = nn.Sequential(nn.BatchNorm2d(WIDTH, **arguments), nn.ReLU())
        return Beside(torch.jit.script(norm))

    return make


def _dark_samples() -> tuple[Tensor, Tensor]:
    """Two of four microbatches do not come to the norm behind the branch."""
    images, labels = IMAGES()
    images[2:4] = images[6:] = 0.0
    return images, labels


class _Bright(Branching):
    def middle(self, x: Tensor) -> Tensor:
        return self.extra(x) if bool(x.amax() > 2.5) else x


REFUSALS = [
    Refusal("functional_call", "functional_call", loss=_functional_call),
    Refusal("reentrant checkpoint", "use_reentrant=False", _Reentrant),
    Refusal("gradient penalty", "(?i)gradient|differentiat|autograd.grad", loss=_penalty),
    Refusal("first derivatives", "(?i)gradient|differentiat|autograd.grad", loss=_saliency),
    Refusal("backward in the loss", "(?i)backward|gradient|differentiat", loss=_backward_inside),
    Refusal("vmap", "torch.func|vmap", loss=_vmap),
    Refusal("torch.func.grad", r"torch.func|grad\b", loss=_func_grad),
    Refusal("a function of one's own", "_NormInside", _OwnFunction),
    Refusal("scripted norm", r"layer", _scripted()),
    Refusal("scripted norm, untracked", r"layer|sample", _scripted(track_running_stats=False)),
    Refusal("contrastive loss", "(?i)sample", loss=_contrastive),
    Refusal("hand-written norm", "layer|(?i:sample)", lambda: Beside(_HandWritten())),
    Refusal("different calls", "(?s)microbatch.*extra", _Bright, batch=_dark_samples),
    Refusal("inference mode", "inference", Distilled, _inference),
    Refusal("dispatch mode", "TorchDispatchMode|dispatch", loss=_inside(_Watching)),
    Refusal("counter of one's own", r"layer\.calls", lambda: Beside(_Counting())),
    Refusal("codebook", r"layer\.average", lambda: Beside(_Codebook())),
    Refusal("below torch.batch_norm", "native_batch_norm", lambda: Beside(_Native())),
]


@offloads
@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_is_refused_in_words(refusal: Refusal, offload: str | None) -> None:
    model = refusal.build()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    microbatches = refusal.microbatches()
    before = everything(model)
    with pytest.raises(AccumulationError, match=refusal.says) as caught:
        accumulate(model, refusal.loss, microbatches, offload=offload)
    assert everything(model) == before
    print(f"{refusal}: {caught.value}")  # noqa: T201


# --- near misses, which are exact --------------------------------------------------------------


def _penalty_of_the_head(model: Classifier, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The derivatives go through no norm."""
    images, labels = batch
    features = model.middle(model.stem(images)).mean((2, 3))
    logits = model.head(features.tanh())
    (slope,) = torch.autograd.grad(logits.sum(), features, create_graph=True)
    return F.cross_entropy(logits, labels) + slope.square().mean()


def _inference_beside(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    with torch.inference_mode():
        factor = float(images.abs().amax() * 0 + 0.5)
    return F.cross_entropy(model(images * factor), labels)


class _FunctionBeside(Shuffle):
    """A function of one's own before the norm."""

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(_Cube.apply(x))


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class _ReentrantBeside(Shuffle):
    """A reentrant checkpoint with no norm in it."""

    def middle(self, x: Tensor) -> Tensor:
        return super().middle(checkpoint(torch.tanh, x, use_reentrant=True))


class _AttentionInSamples(Shuffle):
    """Looks across positions, not across samples."""

    def middle(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return super().middle(x + mixed.transpose(1, 2).view_as(x))


ALLOWED = [
    Case("penalty of the head", Shuffle, IMAGES, _penalty_of_the_head),
    Case("fork_rng", Shuffle, IMAGES, _inside(lambda: torch.random.fork_rng(devices=[]))),
    Case("inference beside", Shuffle, IMAGES, _inference_beside),
    Case("function beside", _FunctionBeside, IMAGES),
    Case("reentrant checkpoint beside", _ReentrantBeside, IMAGES),
    Case("attention within samples", _AttentionInSamples, IMAGES),
]


@offloads
@pytest.mark.parametrize("case", ALLOWED, ids=str)
def test_what_is_like_it_and_can_be_exact(case: Case, offload: str | None) -> None:
    found = run(case, lambda *given: accumulate(*given, offload=offload), [1, 3, 4])
    assert_is_big_batch(case, found)
