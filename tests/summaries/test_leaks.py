"""What is called leaky is what a real step changes; held, it is nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.selection import select
from frostline.summaries import summary
from tests.summaries import measuring
from tests.zoo import BREADTH, ZOO

ALL = {**ZOO, **BREADTH}
QUICK = ("two_branches", "mlp_bn1d", "conv_bn3d", "instance_norm", "transformer", "gru", "resnet18")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_leaky_is_what_a_step_changes(name: str) -> None:
    entry = ALL[name]
    model = measuring.build(entry, "flags")
    optimizer = torch.optim.AdamW(model.parameters())
    now = summary(model, optimizer=optimizer).leaky
    assert summary(model.eval(), optimizer=optimizer).leaky == now  # train() comes first
    flagged = {entry.name for entry in select(model, fl.FLAGGED).tensors}
    before = measuring.contents(model)
    measuring.step(entry, model, optimizer)
    changed = measuring.changed(model, before)
    assert changed & flagged == set(now)
    assert changed - flagged, "the head must train"
    fl.freeze(model, fl.FLAGGED)
    assert summary(model, optimizer=optimizer).leaky == []


def net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), nn.ReLU(), nn.Linear(8, 2)
    )
    model(torch.randn(5, 4))
    model[0].requires_grad_(False)
    return model


STATISTICS = ["0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked"]


def test_the_reason_is_told_at_the_module_and_around_it() -> None:
    found = summary(net())
    rows = {row.name: row for row in found.rows}
    assert found.leaky == STATISTICS
    reason = "1 BatchNorm1d in training mode writes running_mean, running_var, num_batches_tracked"
    assert rows["0"].reasons == rows["0.1"].reasons == (reason,)
    assert [name for name, row in rows.items() if row.leaky] == ["0", "0.1"]
    assert rows["0"].leaks == 3
    assert rows["0"].standing == "leaky"


def test_in_eval_mode_it_is_only_a_matter_of_time() -> None:
    found = summary(net().eval())
    assert found.leaky == STATISTICS
    assert "unheld in eval mode: train() makes it write" in found.rows[1].reasons[0]


def test_equal_reasons_are_counted() -> None:
    model = nn.ModuleList([net()[0] for _ in range(7)])
    (reason,) = summary(model).rows[0].reasons
    assert reason.startswith("7 BatchNorm1d in training mode write running_mean")


def test_an_old_gradient_moves_what_is_frozen() -> None:
    model = net()
    model[0].requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(5, 4)
    model(batch).sum().backward()
    model[0].requires_grad_(False)
    found = summary(model, optimizer=optimizer)
    moved = ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]
    assert found.leaky == [*STATISTICS, *moved]
    assert found.rows[2].reasons == (
        "1 Linear has an old gradient, with which the optimizer moves weight, bias",
    )
    assert summary(model).leaky == STATISTICS  # without an optimizer nobody steps
    before = measuring.contents(model)
    optimizer.step()
    assert {"0.0.weight", "0.0.bias"} <= measuring.changed(model, before)
    assert found.optimizer_bytes == measuring.state(optimizer)
    fl.freeze(model, "0", optimizer=optimizer)
    assert summary(model, optimizer=optimizer).leaky == []
    model[0][0].weight.grad = torch.ones(8, 4)  # the hold takes it away before a step
    assert summary(model, optimizer=optimizer).leaky == []
    before = measuring.contents(model)
    optimizer.step()
    assert "0.0.weight" not in measuring.changed(model, before)


def test_memory_shared_with_something_trainable() -> None:
    model = net().eval()
    teacher = model[2]
    model[0][0].extra = nn.Parameter(teacher.weight.detach(), requires_grad=False)
    model[0][0].register_buffer("part", teacher.bias.detach()[:1])
    fl.freeze(model[0][1])
    found = summary(model)
    assert found.leaky == ["0.0.extra", "0.0.part"]
    before = measuring.contents(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    assert measuring.changed(model, before) == {"0.0.extra", "0.0.part", "2.weight", "2.bias"}


def test_statistics_that_are_to_follow_do_not_leak() -> None:
    model = net()
    fl.freeze(model, "0", stats="update")
    assert summary(model).leaky == []


def test_statistics_that_are_held_alone_do_not_leak() -> None:
    model = net()
    fl.freeze(model, "0", stats="batch")
    assert summary(model).leaky == []


def test_a_weight_that_a_forward_shortens_leaks() -> None:
    model = nn.Sequential(nn.Embedding(9, 3, max_norm=0.1), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    assert summary(model).leaky == ["0.weight"]
    assert summary(model.eval()).leaky == ["0.weight"]


def test_a_parametrisation_by_its_own_name() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before = measuring.contents(model)
    model(torch.randn(3, 4))
    names = {entry.tensor.data_ptr(): entry.name for entry in select(model).tensors}
    named = dict(model.named_buffers())
    written = {names[named[name].data_ptr()] for name in measuring.changed(model, before)}
    assert set(summary(model).leaky) == written != set()


def test_a_trainable_norm_does_not_leak() -> None:
    model = net()
    model[0].requires_grad_(True)
    assert summary(model).leaky == []


def test_a_wrapped_norm_leaks_under_the_name_it_has_without_the_wrapper() -> None:
    norm = nn.BatchNorm1d(3).requires_grad_(False)
    assert fl.summary(nn.DataParallel(norm)).leaky == fl.summary(norm).leaky
    assert fl.summary(norm).leaky == ["running_mean", "running_var", "num_batches_tracked"]
