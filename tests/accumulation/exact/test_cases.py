"""The cases and the truth by themselves: what the tests of exact accumulation stand on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.accumulation.exact.cases import (
    CASES,
    SWEPT,
    Case,
    cut,
    each_of,
    even,
    size_of,
    tensors_of,
)
from tests.accumulation.exact.oracle import constants, in_lockstep
from tests.accumulation.exact.truth import (
    Outcome,
    assert_is_big_batch,
    assert_is_far_off,
    big_batch,
    distance,
    plainly,
    run,
    truth,
)

every_case = each_of(CASES.values())


@every_case
def test_a_case_has_lived(case: Case) -> None:
    model = case.build()
    assert all(tensor.dtype != torch.float32 for tensor in model.state_dict().values())
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            assert module.running_mean.unique().numel() > 1
            assert module.running_var.unique().numel() > 1
        if isinstance(getattr(module, "num_batches_tracked", None), Tensor):
            assert module.num_batches_tracked > 0
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            assert module.weight.min() < 0 < module.weight.max()


@every_case
def test_microbatches_are_the_batch(case: Case) -> None:
    whole = case.big_batch()
    parts = cut(whole, even(size_of(whole), 3))
    assert [size_of(part) for part in parts] == even(size_of(whole), 3)
    for tensor, *pieces in zip(tensors_of(whole), *map(tensors_of, parts), strict=True):
        assert torch.equal(tensor, torch.cat(pieces))
        assert all(piece.is_leaf for piece in pieces)


@every_case
def test_the_noise_is_small(case: Case) -> None:
    true, noise = truth(case)
    assert noise.gradients < 1e-12
    assert noise.statistics < 1e-13
    assert noise.loss < 1e-14
    assert noise.buffers < 1e-14
    trainable = {name for name, p in case.build().named_parameters() if p.requires_grad}
    reached = {name for name in true.gradients if not name.startswith("batch ")}
    assert reached == {name for name in trainable if not name.startswith(("teacher", "unused"))}


@every_case
def test_plain_accumulation_is_far_off(case: Case) -> None:
    error, noise = assert_is_far_off(case, run(case, plainly, even(size_of(case.batch()), 2)))
    assert error.statistics > 1e6 * noise.statistics
    assert error.buffers > 0


@every_case
def test_constant_statistics_are_far_off(case: Case) -> None:
    unrolled = replace(case, prepare=_both(case))  # the oracle knows no checkpoints
    found = run(unrolled, partial(in_lockstep, join=constants), even(size_of(case.batch()), 4))
    assert_is_far_off(case, found)


def _both(case: Case):
    def prepare(model: nn.Module) -> None:
        case.prepare(model)
        case.unroll(model)

    return prepare


@pytest.mark.parametrize(
    "name", ["timm densenet, checkpointed", "timm resnet, checkpointed", "checkpointed"]
)
def test_checkpoints_change_statistics_and_nothing_else(name: str) -> None:
    """Why the truth is taken without them."""
    rolled = big_batch(replace(CASES[name], unroll=lambda model: None))
    apart = distance(rolled, truth(CASES[name])[0])
    assert apart.gradients < 1e-13
    assert apart.loss < 1e-14
    assert apart.statistics > 1e-3


# --- the rule itself ---------------------------------------------------------------------------


@each_of(SWEPT.values())
def test_the_big_batch_in_a_sixth_order_passes(case: Case) -> None:
    reversed_order = list(range(size_of(case.batch())))[::-1]

    def backwards(model: nn.Module, loss, microbatches: list) -> Tensor:
        whole = tuple(torch.cat(parts)[reversed_order] for parts in zip(*microbatches, strict=True))
        total = loss(model, whole)
        total.backward()
        return total

    assert_is_big_batch(case, run(case, backwards, [5, 11]))


def _off_by_little(tensor: Tensor) -> Tensor:
    # The largest element: one that is nearly zero would hide behind the others.
    changed = tensor.clone()
    changed.view(-1)[tensor.abs().argmax()] *= 1 + 1e-9
    return changed


def _wrong(true: Outcome) -> dict[str, Outcome]:
    gradient = next(iter(true.gradients))
    name, (statistic, scale) = next(iter(true.statistics.items()))
    counter = next(name for name in true.buffers if name.endswith("tracked"))
    nan = torch.full_like(true.gradients[gradient], torch.nan)
    without = {name: g for name, g in true.gradients.items() if name != gradient}
    return {
        "a gradient": replace(
            true, gradients=true.gradients | {gradient: _off_by_little(true.gradients[gradient])}
        ),
        "nan": replace(true, gradients=true.gradients | {gradient: nan}),
        "no gradient": replace(true, gradients=without),
        "a statistic": replace(
            true, statistics=true.statistics | {name: (_off_by_little(statistic), scale)}
        ),
        "a counter": replace(true, buffers=true.buffers | {counter: true.buffers[counter] + 1}),
        "the loss": replace(true, loss=true.loss * (1 + 1e-9)),
    }


WRONG = ("a gradient", "nan", "no gradient", "a statistic", "a counter", "the loss")


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_by_little_does_not_pass(what: str) -> None:
    case = CASES["unet"]
    true, _ = truth(case)
    assert_is_big_batch(case, true)
    with pytest.raises(AssertionError):
        assert_is_big_batch(case, _wrong(true)[what])
