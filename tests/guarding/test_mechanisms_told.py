"""One small test for each mechanism that tells: lines, preflight, idle, ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

import frostline as fl
from frostline.guarding import ranks
from tests.guarding.loops import (
    flagged,
    frozen,
    head_optimizer,
    nudge,
    told,
    train,
)

# --- pinpointing -------------------------------------------------------------------------------


def culprits(deed: Any) -> list[tuple[str, str]]:
    """File and operation of what pinpointing found."""
    model = flagged()
    with told(), fl.guard(model, on_change="warn", pinpoint=True) as guard:
        deed(model)
        pinpoint = guard._witness._pinpoint
        assert pinpoint is not None
        pinpoint.stop()
        return [(c.where.partition(":")[0], c.operation) for c in pinpoint.culprits]


HERE = "tests/guarding/test_mechanisms_told.py"


def test_dispatch() -> None:
    assert culprits(lambda m: m.backbone[0].weight.data.add_(1)) == [(HERE, "aten.add_")]


def test_undeclared_writes() -> None:
    def normalise(model: nn.Module) -> None:
        norm = model.backbone[1]
        F.batch_norm(torch.ones(4, 16), norm.running_mean, norm.running_var, training=True)

    ((where, operation),) = set(culprits(normalise))
    assert where == HERE
    assert "batch_norm" in operation


def by_numpy(model: nn.Module) -> None:
    array = model.backbone[0].weight.detach().numpy()
    array[0] += 3.0
    del array


def test_line_tracing() -> None:
    assert culprits(by_numpy) == [(HERE, "line")]


def rebind(model: nn.Module) -> None:
    model.backbone[0].weight.data = torch.ones(16, 12)
    del model


def test_lines_of_other_memory() -> None:
    assert culprits(rebind) == [(HERE, "line")]


@pytest.mark.parametrize("answer", ["warn", "restore"])
def test_lines_after_an_alarm(answer: str) -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    with told(), fl.guard(model, on_change=answer, pinpoint="auto") as guard:
        for _ in range(2):
            by_numpy(model)
            train(model, optimizer, 1)
    assert any(change.culprit is not None for change in guard.report.changes)


def test_lines_of_what_is_known_to_have_changed() -> None:
    test_lines_after_an_alarm("warn")


# --- before the first step, and what never moved -----------------------------------------------


def found_before(mistake: Any, optimizer: Any = head_optimizer) -> str:
    model = flagged()
    mistake(model)
    with told(), fl.guard(model, on_change="warn") as guard:
        train(model, optimizer(model), 1)
    return " ".join(finding.what for finding in guard.report.preflight)


def test_norms_in_training_mode() -> None:
    assert "training mode" in found_before(lambda m: m.backbone.train())


def test_modules_that_write_to_themselves() -> None:
    def observed(model: nn.Module) -> None:
        model.backbone.append(torch.ao.quantization.MinMaxObserver())

    assert "to itself in every mode" in found_before(observed)


def stale(model: nn.Module) -> None:
    model.backbone[0].weight.grad = torch.ones(16, 12)


def test_stale_gradients() -> None:
    assert "gradient from before" in found_before(stale)


def test_frozen_in_an_optimizer() -> None:
    def all_in_one(model: nn.Module) -> SGD:
        optimizer = SGD(model.parameters(), lr=0.1)
        # Kept as zeros, so that the decay of the step writes.
        optimizer.zero_grad = lambda *args: None  # type: ignore[method-assign]
        return optimizer

    assert "in a group of SGD" in found_before(stale, all_in_one)


def test_shared_bytes() -> None:
    def share(model: nn.Module) -> None:
        model.head.bias = nn.Parameter(model.backbone[0].bias.data[:5])

    assert "shares bytes" in found_before(share)


def idle_of(model: nn.Module, optimizer: Any) -> list[str]:
    with fl.guard(model) as guard:
        train(model, optimizer, 2)
    return [f"{entry.name}: {entry.reason}" for entry in guard.report.idle]


def test_idle() -> None:
    model = flagged()
    assert idle_of(model, SGD([model.head.weight], lr=0.1)) == ["head.bias: in no optimizer"]


def test_idle_without_a_gradient() -> None:
    model = flagged()
    model.head.register_parameter("extra", nn.Parameter(torch.ones(2)))
    assert idle_of(model, head_optimizer(model)) == ["head.extra: no gradient"]


# --- ranks -------------------------------------------------------------------------------------


def test_ranks() -> None:
    tables = {0: {"w": "a"}, 1: {"w": "a"}, 2: {"w": "b"}}
    assert ranks._judge(3, (), tables, []).differing == [(2, ["w"])]


def test_ranks_are_compared_at_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "are_several", lambda: True)
    monkeypatch.setattr(ranks, "shared_key", lambda label: 5)
    report = ranks._judge(2, (), {0: {"head.bias": "a"}, 1: {"head.bias": "b"}}, [])
    monkeypatch.setattr(ranks, "compare", lambda table, label: report)
    _, part = frozen()
    with told(), fl.guard(part, on_change="warn") as guard:
        guard.check()
        assert [change.tier for change in guard.report.changes] == ["ranks"]


def test_small_tensors_have_numbers() -> None:
    model, part = frozen()
    with told(), fl.guard(part, on_change="warn") as guard:
        nudge(model)
    (change,) = guard.report.changes
    assert (change.changed_elements, change.elements) == (1, 192)
