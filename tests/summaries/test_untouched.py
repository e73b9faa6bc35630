"""A summary changes nothing, also where the model raises on the way."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import frostline as fl
from frostline.errors import BatchError
from frostline.summaries import summary
from tests.everything import everything
from tests.summaries import measuring
from tests.zoo import BREADTH, ZOO

ALL = {**ZOO, **BREADTH}
QUICK = ("two_branches", "mlp_bn1d", "instance_norm", "transformer", "lstm", "gru")


def surroundings() -> list[Any]:
    state = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        state[1].tolist(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    ]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
@pytest.mark.parametrize("how", ["trainable", "held"])
def test_nothing_changes(name: str, how: str) -> None:
    entry = ALL[name]
    model = measuring.build(entry, how)
    optimizer = torch.optim.AdamW(model.parameters())
    measuring.step(entry, model, optimizer)
    model.train(how == "held")
    batch = entry.batch()
    before = (everything(model, optimizer), surroundings())
    versions = [t._version for t in tree_leaves(batch) if torch.is_tensor(t)]
    str(summary(model, optimizer=optimizer, batch=batch))
    assert (everything(model, optimizer), surroundings()) == before
    assert [t._version for t in tree_leaves(batch) if torch.is_tensor(t)] == versions


class Restless(nn.Module):
    """Changes whatever a forward can change, then does what it is told."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.steps, self.outputs, self.cache = 0, [torch.zeros(1)], {"a": torch.zeros(1)}
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.add_(1))
        self.count += 1
        self.count = self.count * 1.5
        self.layer.weight.data.mul_(1.5)
        self.layer.bias.detach().add_(torch.rand(4))
        self.steps += 1
        self.outputs.append(x)
        self.cache["b"] = self.last = x
        self.layer.weight.requires_grad_(False)
        self.layer.register_forward_hook(lambda *_: None)
        self.norm.eval()
        random.random()
        np.random.random()
        if self.end == "raises":
            raise ValueError("not today")
        if self.end == "asks":
            float(x.sum())
        return self.layer(torch.dropout(x, 0.5, True))


@pytest.mark.parametrize("end", ["returns", "asks", "raises"])
def test_a_forward_that_changes_everything(end: str) -> None:
    model, batch = Restless(end), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first, version = batch.clone(), batch._version
    outputs, content = model.outputs, list(model.outputs)
    before = (everything(model, optimizer), surroundings())
    if end == "raises":
        with pytest.raises(BatchError, match="model\\(batch\\) raised ValueError: not today"):
            summary(model, optimizer=optimizer, batch=batch)
    else:
        how = summary(model, optimizer=optimizer, batch=batch).activation_how
        assert how == ("predicted" if end == "returns" else "measured")
    assert (everything(model, optimizer), surroundings()) == before
    assert torch.equal(batch, first)
    assert batch._version == version
    assert model.outputs is outputs
    assert [id(t) for t in outputs] == [id(t) for t in content]
    assert not hasattr(model, "last")


class Rewrites(nn.Module):
    """Writes to its own tensors past their in-place methods."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("kept", torch.ones(4))
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.kept
        match self.how:
            case "data":
                self.layer.weight.data = self.layer.weight.data.sign()
            case "data of a buffer":
                kept.data = kept.data * 0.5
            case "set":
                kept.set_(torch.zeros(4))
            case "resize":
                kept.resize_(2)
            case "foreach":
                torch._foreach_add_([kept], 1.0)
            case "storage":
                kept.untyped_storage().fill_(0)
            case "numpy":
                kept.numpy()[:] = 5
            case "backward":
                self.layer(x).sum().backward()
            case "other parameter":
                self.layer.weight = nn.Parameter(torch.zeros(4, 4))
        return self.layer(x).tanh()


@pytest.mark.parametrize(
    "how", [
        "data", "data of a buffer", "set", "resize", "foreach", "storage", "numpy", "backward",
        "other parameter",
    ],
)  # fmt: skip
def test_no_way_to_write_gets_through(how: str) -> None:
    model, batch = Rewrites(how), torch.randn(3, 4)
    before = everything(model)
    found = summary(model, batch=batch)
    # numpy must not get an array of nothing, and what needs bytes must get those of the tensor.
    assert (found.activation_how == "measured") is (how in ("data", "storage", "numpy"))
    assert everything(model) == before
    assert type(model.layer.weight.data) is type(model.kept) is torch.Tensor
    # The memory is the old one too, so that views of it are still views.
    assert torch.equal(model.kept, torch.ones(4))


def test_a_graph_from_before_can_still_go_backward() -> None:
    model, batch = (
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        torch.rand(5, 4),
    )
    loss = model(batch).sum()
    summary(model, batch=batch)
    loss.backward()
    assert model[0].weight.grad is not None


def test_a_part_does_not_notice() -> None:
    model, batch = ZOO["two_branches"].build(), ZOO["two_branches"].batch()
    part = fl.freeze(model, "trunk")
    optimizer = torch.optim.AdamW(model.parameters())
    with fl.guard(part) as guard:
        for _ in range(2):
            measuring.step(ZOO["two_branches"], model, optimizer)
            summary(model, optimizer=optimizer, batch=batch)
            summary(model, batch=batch)
    assert guard.report.ok
    assert guard.report.steps == 2
    assert part.changes() == []


class Watchful(nn.Module):
    """No class that anybody knows, with a buffer: its first forward under a hold is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))
        self.writes = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.writes:
            self.seen.add_(x.mean(0))
        return self.layer(x) + self.seen


def test_a_first_forward_that_is_compared_is_still_to_come() -> None:
    model, batch = nn.Sequential(Watchful(), nn.Linear(4, 1)), torch.rand(5, 4)
    fl.freeze(model, "0")
    before = everything(model)
    assert summary(model, batch=batch).activation_how == "predicted"
    assert everything(model) == before
    model[0].writes = True
    with pytest.raises(fl.errors.FrozenStateChanged):
        model(batch)


def test_weights_without_memory_do_not_stay_behind() -> None:
    model, batch = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), torch.rand(5, 4)
    summary(model, batch=batch)
    # torch refuses to swap tensors that somebody else still refers to.
    other = nn.Parameter(torch.ones(4, 4))
    torch.utils.swap_tensors(model[0].weight, other)
    assert torch.equal(model[0].weight, torch.ones(4, 4))
