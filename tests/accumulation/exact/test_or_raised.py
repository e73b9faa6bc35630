"""Odd programs, of which both may come: the big batch's numbers, or an error; never other numbers.

Where the error comes, everything is as before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.accumulation.accumulate import accumulate
from frostline.errors import AccumulationError
from tests.accumulation.exact.case_models import (
    WIDTH,
    Classifier,
    Shuffle,
    conv_norm,
    convolution,
)
from tests.accumulation.exact.cases import IMAGES, Batch, Case, cut
from tests.accumulation.exact.test_restored import everything
from tests.accumulation.exact.truth import Outcome, assert_is_big_batch, outcome, truth
from tests.zoo import classify

offloads = pytest.mark.parametrize("offload", [None, "disk"])


def exact_or_raised(
    case: Case, offload: str | None, error: type[Exception] = AccumulationError
) -> Outcome | None:
    """What came, if it is the big batch; None if it was refused and nothing has changed."""
    truth(case)  # before anything can leak into it
    model, microbatches = case.build(), cut(case.big_batch(), [1, 3, 4])
    before = everything(model)
    try:
        loss = accumulate(model, case.loss, microbatches, offload=offload)
    except error as raised:
        assert everything(model) == before
        print(f"{case}, {offload}: {raised}")  # noqa: T201
        return None
    found = outcome(model, loss, microbatches)
    assert_is_big_batch(case, found)
    return found


class _WritesToNormsInput(Classifier):
    """Torch itself refuses this in backward: the norm keeps its input."""

    def __init__(self, pooled: bool = True, written: bool = True) -> None:
        super().__init__()
        self.pooled, self.written = pooled, written
        norm = nn.BatchNorm1d if pooled else nn.BatchNorm2d
        self.norm = norm(WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3)) if self.pooled else x * 1.0
        normed = self.norm(x)
        return normed + (x.mul_(3.0) if self.written else x * 3.0)


def _out_of_place(model: _WritesToNormsInput) -> None:
    model.written = False


@offloads
@pytest.mark.parametrize("pooled", [True, False], ids=["small", "large"])
def test_a_write_into_the_input_of_a_norm(pooled: bool, offload: str | None) -> None:
    make = partial(_WritesToNormsInput, pooled)
    case = Case("writes to norm's input", make, IMAGES, unroll=_out_of_place)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        classify(case.build(), case.big_batch()).backward()
    exact_or_raised(case, offload, RuntimeError)


class _CachedWeight(Classifier):
    """Computes a weight from a parameter once, and keeps it for all forwards until a step."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.raw = conv_norm(WIDTH, WIDTH), nn.Parameter(torch.ones(WIDTH, 1, 1))
        self.computed: Tensor | None = None

    def middle(self, x: Tensor) -> Tensor:
        if self.computed is None:
            self.computed = self.raw.exp() / 2
        return self.block(x * self.computed) * self.computed


@offloads
def test_a_graph_that_microbatches_share(offload: str | None) -> None:
    found = exact_or_raised(Case("cached weight", _CachedWeight, IMAGES), offload)
    assert found is not None or offload is not None


class _ViewWritten(Classifier):
    """A view and its base both wait; then the view is written to, and the base is used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.block = convolution(), conv_norm(WIDTH, WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        base = self.conv(x)
        half = base[:, :4]
        normed = self.block(x)
        half.mul_(0.3)
        return normed + base


@offloads
def test_a_view_that_is_written_to_after_a_norm(offload: str | None) -> None:
    found = exact_or_raised(Case("view written", _ViewWritten, IMAGES), offload)
    assert found is not None or offload is not None


class _NumpyInside(Classifier):
    """Goes through an array that shares memory with a tensor, without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.block = conv_norm(WIDTH, WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        array = (x.detach() * 0.5).numpy()
        normed = self.block(x)
        return normed + torch.from_numpy(array + 1.0)


@offloads
def test_an_array_that_waits(offload: str | None) -> None:
    exact_or_raised(Case("array", _NumpyInside, IMAGES), offload)


class _Subclass(Tensor):
    """A tensor subclass of the user's."""


class _SubclassInside(Shuffle):
    def middle(self, x: Tensor) -> Tensor:
        return super().middle(x.as_subclass(_Subclass)).as_subclass(Tensor)


@offloads
def test_a_tensor_subclass(offload: str | None) -> None:
    exact_or_raised(Case("subclass", _SubclassInside, IMAGES), offload)


class _KeepsOnContext(torch.autograd.Function):
    """Keeps its input as an attribute, where saved-tensor hooks do not see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 3 * ctx.x**2 * gradient


class _FunctionOfOnesOwn(Shuffle):
    def middle(self, x: Tensor) -> Tensor:
        return super().middle(_KeepsOnContext.apply(x))


@offloads
def test_a_tensor_kept_on_a_context(offload: str | None) -> None:
    exact_or_raised(Case("kept on context", _FunctionOfOnesOwn, IMAGES), offload)


def _saved_elsewhere(model: nn.Module, batch: Batch) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return classify(model, batch)


def _saved_as_float64_halves(model: nn.Module, batch: Batch) -> Tensor:
    """Hooks that change what is packed, and give it back."""
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t * 0.5, t.dtype), lambda packed: (packed[0] * 2).to(packed[1])
    )
    with hooks:
        return classify(model, batch)


@offloads
@pytest.mark.parametrize("loss", [_saved_elsewhere, _saved_as_float64_halves])
def test_hooks_of_saved_tensors_inside(loss: Any, offload: str | None) -> None:
    found = exact_or_raised(Case("saved elsewhere", Shuffle, IMAGES, loss), offload)
    assert found is not None or offload is not None


# --- probes that are made once for a model and a loss ------------------------------------------


def _loss_of(reduction: str) -> Any:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction=reduction)

    return loss


def _by_parts(reduction: str) -> Any:
    return partial(_reduced, reduction=reduction)


def _reduced(model: nn.Module, batch: tuple[Tensor, Tensor], reduction: str) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction=reduction)


class _Reduced:
    def __init__(self, reduction: str) -> None:
        self.reduction = reduction

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return _reduced(model, batch, self.reduction)

    def method(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return _reduced(model, batch, self.reduction)


KINDS = {
    "closure": _loss_of,
    "partial": _by_parts,
    "object": _Reduced,
    "method": lambda reduction: _Reduced(reduction).method,
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_loss_of_the_same_code_is_looked_at_too(kind: str) -> None:
    """The first one is a mean, the second a sum, which is no mean over the window."""
    case = Case("two losses", Shuffle, IMAGES)
    model, microbatches = case.build(), cut(case.big_batch(), [1, 3, 4])
    accumulate(model, KINDS[kind]("mean"), microbatches, offload=None)
    with pytest.raises(AccumulationError, match="sum"):
        accumulate(model, KINDS[kind]("sum"), microbatches, offload=None)


def test_a_sum_is_refused_each_time() -> None:
    case = Case("a sum", Shuffle, IMAGES)
    model, microbatches = case.build(), cut(case.big_batch(), [1, 3, 4])
    for _ in range(2):
        with pytest.raises(AccumulationError, match="sum"):
            accumulate(model, _loss_of("sum"), microbatches, offload=None)


# --- transforms --------------------------------------------------------------------------------


def _transform_beside(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A transform that has ended before a norm comes."""
    images, labels = batch
    slope = torch.func.vmap(torch.func.grad(lambda x: x.sin().sum()))(images)
    return F.cross_entropy(model(images + slope), labels)


@offloads
def test_a_transform_that_has_ended(offload: str | None) -> None:
    found = exact_or_raised(Case("transform", Shuffle, IMAGES, _transform_beside), offload)
    assert found is not None or offload is not None
