"""An open window in a checkpoint: saved in the middle, gone on with elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR

from frostline.accumulation.accumulator import Accumulator
from frostline.errors import AccumulationError, FrostlineWarning
from tests.accumulation.own_loop.loops import batch_norm_net, cross_entropy, microbatches
from tests.zoo import ZOO, fresh

SIZES = [3, 2, 4, 2, 2, 5, 3, 2, 4, 3]


class Script:
    """A training script, with all that it would save."""

    def __init__(self, batchnorm: Any = "deferred", count: int = 4, seed: int = 0) -> None:
        self.model = batch_norm_net(seed).float()
        self.optimizer = AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = StepLR(self.optimizer, 1, 0.5)
        self.scaler = GradScaler("cpu", init_scale=8.0, growth_interval=1)
        self.acc = Accumulator(
            self.model,
            self.optimizer,
            count,
            batchnorm=batchnorm,
            max_grad_norm=0.3,
            scaler=self.scaler,
            scheduler=self.scheduler,
        )

    def train(self, batches: list[tuple[Tensor, Tensor]], until: int | None = None) -> None:
        for k, (x, y) in enumerate(self.acc.iterate(batches)):
            self.acc.backward(cross_entropy(self.model, (x.float(), y)), (y != -100).sum())
            if k == until:
                break

    def save(self, path: Path, *, gradients: bool) -> None:
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "acc": self.acc.state_dict(gradients=gradients),
            },
            path,
        )

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.acc.load_state_dict(state["acc"])

    def everything(self) -> list[Tensor]:
        moments = [t for s in self.optimizer.state.values() for t in s.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *moments]
        numbers = [self.acc.loss, self.acc.grad_norm, self.acc.steps, self.scaler.get_scale()]
        return [t.detach() for t in (*tensors, torch.tensor(numbers, dtype=torch.float64))]


def uninterrupted(batchnorm: Any = "deferred") -> list[Tensor]:
    script = Script(batchnorm)
    script.train(microbatches(SIZES))
    return script.everything()


def assert_equal(found: list[Tensor], true: list[Tensor]) -> None:
    assert len(found) == len(true)
    assert all(map(torch.equal, found, true))


@pytest.mark.parametrize("batchnorm", ["deferred", "compensated", "plain"])
@pytest.mark.parametrize("saved_after", range(1, 10))
def test_a_window_goes_on_to_the_same_bits(
    batchnorm: Any, saved_after: int, tmp_path: Path
) -> None:
    first, second = Script(batchnorm), Script(batchnorm, seed=1)
    first.train(microbatches(SIZES), until=saved_after - 1)
    first.save(tmp_path / "checkpoint", gradients=True)
    first.acc.discard()
    second.load(tmp_path / "checkpoint")
    assert second.acc.pending == saved_after % 4
    second.train(microbatches(SIZES)[saved_after:])  # no warning of a window that is open
    assert_equal(second.everything(), uninterrupted(batchnorm))


@pytest.mark.parametrize("batchnorm", ["deferred", "compensated", "plain"])
def test_without_gradients_the_window_starts_again(batchnorm: Any, tmp_path: Path) -> None:
    """Statistics and gradients always belong to the same samples."""
    first, second = Script(batchnorm), Script(batchnorm, seed=1)
    first.train(microbatches(SIZES), until=5)
    first.save(tmp_path / "checkpoint", gradients=False)
    back = 6 - first.acc.pending
    first.acc.discard()
    second.load(tmp_path / "checkpoint")
    assert (second.acc.pending, second.acc.steps) == (0, 1)
    assert all(p.grad is None for p in second.model.parameters())
    second.train(microbatches(SIZES)[back:])
    assert_equal(second.everything(), uninterrupted(batchnorm))


def test_saving_changes_nothing(tmp_path: Path) -> None:
    script = Script()
    for x, y in script.acc.iterate(microbatches(SIZES)):
        script.acc.backward(cross_entropy(script.model, (x.float(), y)), (y != -100).sum())
        script.save(tmp_path / "checkpoint", gradients=True)
    assert_equal(script.everything(), uninterrupted())


def test_a_saved_state_does_not_move_with_the_window() -> None:
    script = Script()
    script.train(microbatches(SIZES), until=1)
    state = script.acc.state_dict(gradients=True)
    before = io.BytesIO()
    torch.save(state, before)
    with pytest.warns(FrostlineWarning, match="open window"):
        script.train(microbatches(SIZES)[2:3], until=0)
    after = io.BytesIO()
    torch.save(state, after)
    assert before.getvalue() == after.getvalue()
    script.acc.discard()


def test_gradients_of_before_the_window_come_along() -> None:
    found = []
    for interrupted in (False, True):
        script = Script()
        script.model.eval()(torch.ones(2, 6)).sum().backward()
        script.model.train()
        with pytest.warns(FrostlineWarning, match="from before the window"):
            script.train(microbatches(SIZES), until=1)
        if interrupted:
            other = Script(seed=1)
            other.model.load_state_dict(script.model.state_dict())
            other.acc.load_state_dict(script.acc.state_dict(gradients=True))
            script.acc.discard()
            script = other
        script.acc.flush()
        found.append(script.everything())
    assert_equal(*found)


def test_loading_drops_the_window_that_is_open() -> None:
    script = Script()
    state = script.acc.state_dict(gradients=True)
    script.train(microbatches(SIZES), until=1)
    script.acc.load_state_dict(state)
    script.train(microbatches(SIZES))
    assert_equal(script.everything(), uninterrupted())


def test_going_back_to_an_open_window_needs_no_warning() -> None:
    script = Script()
    script.train(microbatches(SIZES), until=1)
    state = script.acc.state_dict(gradients=True)
    script.acc.load_state_dict(state)
    script.train(microbatches(SIZES)[2:])
    assert_equal(script.everything(), uninterrupted())


def test_a_real_model(tmp_path: Path) -> None:
    entry = ZOO["mobilenetv3"]
    batch, found = entry.batch(), []
    cut = [tuple(t[k : k + 2] for t in batch) for k in (0, 1, 2)]

    def run(model: nn.Module, parts: list[Any], state: Any = None) -> tuple[nn.Module, Any]:
        acc = Accumulator(model, AdamW(model.parameters(), lr=1e-3), 3)
        if state is not None:
            acc.load_state_dict(torch.load(state, weights_only=True))
        for part in parts:
            with acc.microbatch():
                acc.backward(entry.loss(model, part))
        torch.save(acc.state_dict(gradients=True), tmp_path / "acc")
        acc.discard()
        return model, tmp_path / "acc"

    torch.manual_seed(1)
    found.append(run(fresh(entry), cut)[0])
    torch.manual_seed(1)
    middle, state = run(fresh(entry), cut[:2])
    found.append(run(middle, cut[2:], state)[0])
    assert_equal(*([*model.state_dict().values()] for model in found))


# --- what does not fit ----------------------------------------------------------------------------


def open_state(**changed: Any) -> dict[str, Any]:
    script = Script()
    script.train(microbatches(SIZES), until=1)
    state = script.acc.state_dict(gradients=True)
    script.acc.discard()
    return state | changed


WRONG: dict[str, tuple[Any, str]] = {
    "none": (None, "expected what acc.state_dict.. returns, version 1; got NoneType"),
    "a model's": ({"weight": 1}, "version 1; got None"),
    "later": (open_state(version=2), "version 1; got 2"),
    "other count": (open_state(microbatches=5), "one of 5 microbatches, .* has 4"),
    "other parameters": (
        open_state(gradients={"before": [None], "window": [None]}),
        "gradients are of other parameters",
    ),
    "other batchnorm": (
        open_state(statistics={"version": 1, "batchnorm": "plain", "before": {}}),
        "'plain'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_state_that_does_not_belong_here(name: str) -> None:
    state, message = WRONG[name]
    with pytest.raises(AccumulationError, match=message):
        Script().acc.load_state_dict(state)


def test_a_closed_window_loads_with_other_counts() -> None:
    script = Script(count=2)
    script.acc.load_state_dict(Script(count=4).acc.state_dict(gradients=True))
    assert script.acc.pending == 0
