"""`batchnorm="exact"` against the real big batch, in float64, within four times its noise."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.accumulation.accumulate import accumulate
from frostline.errors import AccumulationError
from tests.accumulation.exact.case_models import UNet
from tests.accumulation.exact.cases import (
    CASES,
    HEAVY,
    OTHERS,
    SWEPT,
    Case,
    cut,
    each_of,
    even,
    size_of,
)
from tests.accumulation.exact.truth import (
    assert_is_big_batch,
    error_and_noise,
    outcome,
    plainly,
    run,
    runs,
)
from tests.zoo_batches import labelled

ENGINES = [None, "disk"]
offloads = pytest.mark.parametrize("offload", ENGINES)
swept = each_of(SWEPT.values())

# With the microbatches' graphs in pieces, autograd no longer knows views of each other.
REFUSED_IN_PIECES = {"aliased"}


def check(case: Case, splits: list[list[int]], offload: str | None) -> None:
    found = runs(case, partial(accumulate, offload=offload), splits)
    for sizes, outcome_of_it in zip(splits, found, strict=True):
        print(f"{case}, {offload}, {sizes}")  # noqa: T201
        error, noise = assert_is_big_batch(case, outcome_of_it)
        print(f"  error: {error}\n  noise: {noise}")  # noqa: T201


@offloads
@swept
def test_every_number_of_microbatches(case: Case, offload: str | None) -> None:
    check(case, [even(16, count) for count in (1, 2, 3, 4, 5, 8, 16)], offload)


@offloads
@each_of(OTHERS.values())
def test_every_construct(case: Case, offload: str | None) -> None:
    if offload == "disk" and case.name in REFUSED_IN_PIECES:
        with pytest.raises(AccumulationError, match="offload=None"):
            run(case, partial(accumulate, offload=offload), [4, 4])
        return
    check(case, [even(size_of(case.batch()), count) for count in (1, 4)], offload)


@offloads
@swept
def test_unequal_microbatches(case: Case, offload: str | None) -> None:
    check(case, [[1, 7, 3, 5], [6, 9, 1]], offload)


@pytest.mark.parametrize("offload", ["cpu", "auto"])
@each_of(SWEPT.values(), slow=HEAVY)
def test_other_places_to_wait(case: Case, offload: str) -> None:
    check(case, [[5, 5, 6]], offload)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    ends=st.sets(st.integers(1, 15)),
    offload=st.sampled_from(ENGINES),
    name=st.sampled_from(list(SWEPT)),
)
def test_any_split(ends: set[int], offload: str | None, name: str) -> None:
    edges = [0, *sorted(ends), 16]
    check(CASES[name], [[b - a for a, b in pairwise(edges)]], offload)


@offloads
@pytest.mark.parametrize(
    "name", ["two inputs", "two heads", "some samples", "hf resnet", "instance norm, tracked"]
)
def test_microbatches_of_one_sample(name: str, offload: str | None) -> None:
    """Some of these norms see one value a channel then, or none, which torch alone refuses."""
    check(CASES[name], [[1] * 8], offload)


def test_torch_alone_refuses_one_value_a_channel() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run(CASES["two inputs"], plainly, [1] * 8)


@offloads
def test_gradients_are_added_to_those_that_are_there(offload: str | None) -> None:
    case = CASES["unet"]
    model = case.build()
    old = {}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
        old[name] = parameter.grad
    microbatches = cut(case.big_batch(), even(16, 4))
    loss = accumulate(model, case.loss, microbatches, offload=offload)
    for name, parameter in model.named_parameters():
        assert parameter.grad is old[name]
        parameter.grad = old[name] - 0.25
    found = outcome(model, loss, microbatches)
    # Sums with 0.25 are rounded to 2^-54, which is more than the noise of small gradients.
    assert error_and_noise(case, found)[0].gradients < 1e-12


@offloads
def test_two_windows_are_two_big_batches(offload: str | None) -> None:
    case = CASES["timm resnet"]
    ours, theirs = case.build(), case.build()
    for _ in range(2):
        accumulate(ours, case.loss, cut(case.big_batch(), [6, 10]), offload=offload)
        case.loss(theirs, case.big_batch()).backward()
    for name, parameter in theirs.named_parameters():
        apart = (dict(ours.named_parameters())[name].grad - parameter.grad).norm()
        assert apart <= 1e-10 * parameter.grad.norm() or apart < 1e-12, name
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer, rtol=1e-12, atol=1e-13)


@offloads
def test_items_weigh_microbatches(offload: str | None) -> None:
    """A loss that is the mean over labelled pixels, of which microbatches have unequal numbers."""

    def labelled_pixels(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels, ignore_index=-100)

    def count(batch: tuple[Tensor, Tensor]) -> int:
        return int((batch[1] != -100).sum())

    def maps() -> tuple[Tensor, Tensor]:
        images, labels = CASES["unet"].batch()
        labels[torch.arange(16).view(-1, 1, 1) * 16 > torch.arange(256).view(16, 16)] = -100
        return images, labels

    case = Case("labelled pixels", UNet, maps, labelled_pixels)
    sizes = [3, 9, 4]
    assert len({count(part) / size_of(part) for part in cut(case.big_batch(), sizes)}) == 3
    weigh = partial(accumulate, offload=offload, items=count)
    assert_is_big_batch(case, run(case, weigh, sizes))


@offloads
def test_the_loss_comes_detached(offload: str | None) -> None:
    case = CASES["two heads"]
    loss = accumulate(case.build(), case.loss, cut(case.big_batch(), [4, 4]), offload=offload)
    assert loss.dim() == 0
    assert loss.dtype == torch.float64
    assert not loss.requires_grad


class _Shifted(nn.Module):
    """The inputs of its norm are 10^4 standard deviations away from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(x + 1e4)))


@offloads
def test_a_norm_with_a_large_mean(offload: str | None) -> None:
    """Means of squares would lose 8 more digits than the differences from the mean do."""
    case = Case("large mean", _Shifted, labelled(16, 6))
    found = run(case, partial(accumulate, offload=offload), [1, 7, 3, 5])
    error, _ = error_and_noise(case, found)
    assert max(error.kinds) < 1e-10
