"""The loop of one's own gives the steps of the big batch, wherever no norm looks across it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import frostline as fl
from frostline.accumulation.accumulator import Accumulator
from tests.accumulation.own_loop import loops as accumulator_loops
from tests.accumulation.own_loop.loops import (
    assert_close,
    assert_same,
    batch_norm_net,
    by_accumulator,
    by_big_batches,
    cross_entropy,
    distance,
    joined,
    layer_norm_net,
    microbatches,
)
from tests.zoo import ZOO, classify, fresh

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": partial(AdamW, lr=0.01),
    "adamw fused": partial(AdamW, lr=0.01, fused=True),
}
UNEQUAL = [5, 3, 1, 4, 6, 2, 3, 3, 1, 7, 2]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [None, 0.2])
def test_steps_are_those_of_the_big_batch(name: str, max_grad_norm: float | None) -> None:
    runs = []
    for train in (by_accumulator, by_big_batches):
        model = layer_norm_net()
        optimizer = OPTIMIZERS[name](model.parameters())
        scheduler = CosineAnnealingLR(optimizer, T_max=5)
        batches = microbatches(UNEQUAL)
        runs.append(
            train(  # type: ignore[operator]
                model, optimizer, batches, 4, max_grad_norm=max_grad_norm, scheduler=scheduler
            )
        )
    assert len(runs[0].losses) == 3
    assert_same(*runs)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=13),
    count=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_any_sizes_and_any_tail(sizes: list[int], count: int, seed: int) -> None:
    runs = []
    for train in (by_accumulator, by_big_batches):
        model = layer_norm_net()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        runs.append(train(model, optimizer, microbatches(sizes, seed), count, max_grad_norm=0.3))  # type: ignore[operator]
    assert len(runs[0].losses) == -(-len(sizes) // count)
    assert_same(*runs)


def test_without_items_all_microbatches_weigh_the_same() -> None:
    batches = microbatches([4] * 7)
    for _, y in batches:
        y.clamp_(min=0)
    runs = []
    for train, options in ((by_accumulator, {"items": lambda batch: 1}), (by_big_batches, {})):
        model = layer_norm_net()
        runs.append(train(model, SGD(model.parameters(), lr=0.1), batches, 3, **options))  # type: ignore[operator]
    assert_same(*runs)


def test_weights_matter() -> None:
    """A near miss: equal weights for unequal microbatches."""
    batches, runs = microbatches(UNEQUAL), []
    for train, options in ((by_accumulator, {"items": lambda batch: 1}), (by_big_batches, {})):
        model = layer_norm_net()
        runs.append(train(model, SGD(model.parameters(), lr=0.1), batches, 4, **options))  # type: ignore[operator]
    assert distance(runs[0].gradients[0], runs[1].gradients[0]) > 1e-2


def test_one_microbatch_a_window_is_plain_training_to_the_bit() -> None:
    batches, runs = microbatches(UNEQUAL), []
    for train in (by_accumulator, by_big_batches):
        model = layer_norm_net().float()
        optimizer = AdamW(model.parameters(), lr=0.01)
        single = [(x.float(), y) for x, y in batches]
        runs.append(train(model, optimizer, single, 1, max_grad_norm=0.2))  # type: ignore[operator]
    assert runs[0].losses == runs[1].losses
    for here, there in zip(runs[0].parameters, runs[1].parameters, strict=True):
        assert torch.equal(here, there)


# --- real models ---------------------------------------------------------------------------------


def held_resnet() -> nn.Module:
    model = fresh(ZOO["resnet18"]).double()
    fl.freeze(model, nn.BatchNorm2d, params=False)
    return model


def test_a_resnet_with_held_norms() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(6, 3, 32, 32, generator=draw, dtype=torch.float64)
    y = torch.randint(5, (6,), generator=draw)
    batches = list(zip(x.split([2, 1, 3]), y.split([2, 1, 3]), strict=True))
    runs = []
    for train, options in ((by_accumulator, {"items": lambda b: len(b[1])}), (by_big_batches, {})):
        model = held_resnet()
        optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
        runs.append(
            train(model, optimizer, batches, 2, loss=classify, max_grad_norm=0.5, **options)  # type: ignore[operator]
        )
    assert_same(*runs, limit=1e-11)
    assert all(torch.equal(*pair) for pair in zip(runs[0].buffers, runs[1].buffers, strict=True))


def test_the_same_resnet_with_norms_in_training_is_far_off() -> None:
    """The control: what the docstring says in its first line."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, 32, 32, generator=draw, dtype=torch.float64)
    batches = list(zip(x.split(2), torch.randint(5, (4,), generator=draw).split(2), strict=True))
    runs = []
    for train, options in ((by_accumulator, {"items": lambda b: len(b[1])}), (by_big_batches, {})):
        model = fresh(ZOO["resnet18"]).double()
        optimizer = SGD(model.parameters(), lr=0.01)
        runs.append(train(model, optimizer, batches, 2, loss=classify, **options))  # type: ignore[operator]
    assert distance(runs[0].gradients[0], runs[1].gradients[0]) > 1e-2


def test_a_frozen_backbone_under_guard() -> None:
    entry = ZOO["two_branches"]
    model = fresh(entry)
    part = fl.freeze(model, entry.backbone)
    acc = Accumulator(model, AdamW(model.parameters(), lr=0.01), 3)
    x, y = entry.batch()
    with fl.guard(part) as guard:
        for batch in acc.iterate(list(zip(x.split(2), y.split(2), strict=True))):
            acc.backward(entry.loss(model, batch), items=len(batch[1]))
    assert guard.report.ok
    assert guard.report.steps == acc.steps == 2


def joined_tokens(window: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([batch[key] for batch in window]) for key in window[0]}


def token_batches() -> list[dict[str, Tensor]]:
    """Texts of 12 tokens; the labels of a share of each are ignored."""
    draw, found = torch.Generator().manual_seed(8), []
    for size in (2, 1, 3, 2, 1):
        ids = torch.randint(3, 40, (size, 12), generator=draw)
        labels = ids.clone()
        labels[torch.rand(size, 12, generator=draw) < 0.5] = -100
        found.append({"input_ids": ids, "labels": labels})
    return found


@pytest.mark.slow
def test_gpt2_by_tokens() -> None:
    def tokens(batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"][:, 1:] != -100).sum()

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        # The model's own loss is computed in float32.
        logits = model(batch["input_ids"]).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())

    runs = []
    for train, options in (
        (by_accumulator, {"items": tokens}),
        (by_big_batches, {"join": joined_tokens}),
    ):
        model = fresh(ZOO["gpt2"]).double().eval()  # no dropout, which draws for each forward
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        batches = token_batches()
        runs.append(
            train(model, optimizer, batches, 3, loss=loss, max_grad_norm=1.0, **options)  # type: ignore[operator]
        )
    assert_same(*runs, limit=1e-11)


# --- what is logged, what is returned -----------------------------------------------------------


def test_losses_are_those_of_the_big_batch() -> None:
    model, batches = layer_norm_net(), microbatches(UNEQUAL)
    acc = Accumulator(model, SGD(model.parameters(), lr=0.1), 4, max_grad_norm=100.0)
    before, seen, total, items = deepcopy(model), [], 0.0, 0
    for x, y in acc.iterate(batches):
        count = int((y != -100).sum())
        loss = acc.backward(cross_entropy(model, (x, y)), items=count)
        assert not loss.requires_grad
        assert loss.dim() == 0
        total, items = total + count * loss.item(), items + count
        if acc.pending == 0:
            seen.append((acc.loss, total / items, acc.grad_norm, acc.steps))
            total, items = 0.0, 0
    true = by_big_batches(before, SGD(before.parameters(), lr=0.1), batches, 4)
    for (loss, mean, norm, _), there, gradients in zip(
        seen, true.losses, true.gradients, strict=True
    ):
        assert loss == pytest.approx(there, rel=1e-13)
        assert mean == pytest.approx(there, rel=1e-13)
        assert norm == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()))
    assert [steps for *_, steps in seen] == [1, 2, 3]
    assert acc.skipped == 0


def test_nothing_to_log_before_the_first_window() -> None:
    model = layer_norm_net()
    acc = Accumulator(model, SGD(model.parameters(), lr=0.1), 2)
    assert (acc.loss, acc.grad_norm, acc.steps, acc.skipped, acc.pending) == (None, None, 0, 0, 0)


def test_gradients_are_zeroed_and_the_size_of_a_mean_meanwhile() -> None:
    model = layer_norm_net().half()
    acc = Accumulator(model, SGD(model.parameters(), lr=0.0), 4)
    for x in acc.iterate([torch.full((2, 6), 8.0).half()] * 4):
        # A sum over 60000 items would not fit into half precision.
        acc.backward(model(x).float().square().mean(), items=60_000)
        if acc.pending:
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is None for p in model.parameters())


def test_the_first_line_of_the_docstring_says_what_is_exact() -> None:
    assert (Accumulator.__doc__ or "").startswith("Gradients equal the big batch's unless")


def test_gradients_of_before_are_a_part_of_the_step() -> None:
    """As in plain torch, and neither weighed nor scaled with the window."""
    batches, models = microbatches([3, 1]), [batch_norm_net().eval() for _ in range(2)]
    for model in models:
        model(torch.ones(2, 6).double()).sum().backward()
    with pytest.warns(fl.errors.FrostlineWarning, match="gradients from before the window") as told:
        by_accumulator(models[0], SGD(models[0].parameters(), lr=0.1), batches, 4)
    assert len(told) == 1
    assert told[0].filename == accumulator_loops.__file__
    cross_entropy(models[1], joined(batches)).backward()
    SGD(models[1].parameters(), lr=0.1).step()
    assert_close(*([p.detach() for p in model.parameters()] for model in models), 1e-14)


def test_gradients_of_before_are_told_of_once() -> None:
    model = layer_norm_net()
    acc = Accumulator(model, SGD(model.parameters(), lr=0.1), 2)
    told = 0
    for x, _ in acc.iterate(microbatches([2] * 6)):
        if not acc.pending:
            model[0].weight.square().sum().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            acc.backward(model(x).mean())
        told += len(caught)
    assert (told, acc.steps) == (1, 3)
