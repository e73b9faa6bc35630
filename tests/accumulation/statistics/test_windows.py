"""A window ends, is dropped, saved and resumed; what it cannot see is refused."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frostline.accumulation.statistics.running_statistics import policy
from frostline.accumulation.statistics.windows import RunningStatistics
from frostline.errors import AccumulationError, FrostlineWarning
from tests.accumulation.statistics.truth import (
    INPUTS,
    POLICIES,
    Shared,
    cut,
    run_window,
    same_state,
    state,
)
from tests.zoo import ZOO, fresh, live, seeded


def fail_in_forward(statistics: RunningStatistics, model: nn.Module, x: Tensor) -> None:
    with statistics.forward(2):
        model(x)
        raise ArithmeticError


@pytest.mark.parametrize("policy_name", POLICIES)
def test_discarding_brings_every_bit_back(policy_name: str) -> None:
    model = fresh(ZOO["mobilenetv3"])
    x = INPUTS["mobilenetv3"]()[0]
    buffers = list(model.buffers())
    before = state(model)
    statistics = policy(policy_name, model)
    run_window(statistics, model, x.split(5))
    if policy_name != "deferred":
        assert not same_state(state(model), before)
    statistics.discard()
    assert same_state(state(model), before)
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
    run_window(statistics, model, x.split(5))
    with pytest.raises(ArithmeticError):
        fail_in_forward(statistics, model, x)
    statistics.discard()
    assert same_state(state(model), before)
    statistics.commit()
    assert same_state(state(model), before)


class OwnNames(nn.Module):
    """Calls the function with buffers of its own names, in a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        def norm(x: Tensor) -> Tensor:
            return F.batch_norm(x, self.mean, self.variance, training=True)

        return checkpoint(norm, self.lift(x), use_reentrant=False)


@pytest.mark.parametrize("policy_name", ["compensated", "deferred"])
def test_buffers_of_other_names_are_brought_back_too(policy_name: str) -> None:
    net, x = OwnNames(), torch.randn(4, 3)
    before = state(net)
    statistics = policy(policy_name, net)
    with statistics.forward(1):
        loss = net(x).square().sum()
    after_forward = state(net)
    assert same_state(after_forward, before) is (policy_name == "deferred")
    with statistics.backward():
        loss.backward()
    assert same_state(state(net), after_forward)
    statistics.discard()
    assert same_state(state(net), before)


class ByHand(nn.BatchNorm1d):
    """Many libraries average in plain tensor operations."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.running_mean += 0.1 * (x.mean(0) - self.running_mean)
        return x - x.mean(0)


class Replacing(ByHand):
    """The same into another tensor."""

    def forward(self, x: Tensor) -> Tensor:
        self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean(0).detach()
        return x - x.mean(0)


@pytest.mark.parametrize("policy_name", ["compensated", "deferred"])
@pytest.mark.parametrize("kind", [ByHand, Replacing])
def test_updates_out_of_sight_are_refused_by_name(
    kind: type[nn.BatchNorm1d], policy_name: str
) -> None:
    net = live(nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(kind(3))))
    before, x = state(net), torch.randn(8, 3)
    statistics = policy(policy_name, net)
    with pytest.raises(AccumulationError) as caught:
        run_window(statistics, net, x.split(4))
    assert f"1.0.running_mean was written by {kind.__name__} itself" in str(caught.value)
    assert 'Pass batchnorm="plain"' in str(caught.value)
    statistics.discard()
    assert same_state(state(net), before)
    run_window(policy("plain", net), net, x.split(4))


@pytest.mark.parametrize("policy_name", ["compensated", "deferred"])
def test_a_scripted_norm_is_out_of_sight(policy_name: str) -> None:
    scripted, x = torch.jit.script(nn.Sequential(nn.BatchNorm1d(3))), torch.randn(8, 3)
    before = state(scripted)
    statistics = policy(policy_name, scripted)
    with pytest.raises(AccumulationError, match=r"0\.running_mean was written by"):
        run_window(statistics, scripted, x.split(4))
    statistics.discard()
    assert same_state(state(scripted), before)


@pytest.mark.parametrize("policy_name", POLICIES)
def test_a_graph_that_saved_statistics_still_goes_backward(policy_name: str) -> None:
    """A norm in eval saves its statistics; putting them back must not look like a change."""
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    live(net)[3].eval()
    statistics = policy(policy_name, net)
    losses = []
    for part in torch.randn(8, 3).split(4):
        with statistics.forward(2):
            losses.append(net(part).square().sum())
    for loss in losses:
        with statistics.backward():
            loss.backward()
    statistics.commit()


def through_a_file(saved: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize("name", ["mlp_bn1d", "instance_norm", "shared"])
def test_an_open_window_is_saved_and_goes_on_in_another_process(
    name: str, policy_name: str
) -> None:
    def build() -> nn.Module:
        with seeded(3):
            return live(Shared(None)) if name == "shared" else fresh(ZOO[name])

    x = INPUTS[name]()[0] if name in INPUTS else torch.randn(10, 3)
    microbatches = cut(x, (2, 3, 5))
    whole, first, second = build(), build(), build()
    statistics = policy(policy_name, whole)
    run_window(statistics, whole, microbatches)
    statistics.commit()

    start = state(first)
    statistics = policy(policy_name, first)
    for microbatch in microbatches[:2]:
        with statistics.forward(3):
            first(microbatch)
    saved = through_a_file({"model": first.state_dict(), "window": statistics.state_dict()})
    assert list(saved["model"]) == list(start)  # no keys are added

    second.load_state_dict(saved["model"])
    resumed = policy(policy_name, second)
    resumed.load_state_dict(saved["window"])
    with resumed.forward(3):
        second(microbatches[2])
    resumed.commit()
    assert same_state(state(second), state(whole))

    with resumed.forward(3):  # what is open when a window is loaded is dropped
        second(microbatches[0] * 2)
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["window"])
    with resumed.forward(3):
        second(microbatches[2])
    resumed.commit()
    assert same_state(state(second), state(whole))

    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["window"])
    resumed.discard()
    assert same_state(state(second), start)


def test_a_saved_window_of_something_else_is_refused() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))
    statistics = policy("deferred", net)
    run_window(statistics, net, torch.randn(4, 3).split(2))
    saved = statistics.state_dict()
    with pytest.raises(AccumulationError, match="Pass batchnorm='deferred'"):
        policy("plain", net).load_state_dict(saved)
    for other, says in (
        (nn.ModuleList([nn.ModuleList([nn.BatchNorm1d(3)])]), "does not have"),
        (nn.Sequential(nn.BatchNorm1d(4)), r"has as \[4\]"),
    ):
        with pytest.raises(AccumulationError, match=says):
            policy("deferred", other).load_state_dict(saved)


def test_a_window_with_a_foreign_buffer_is_committed_but_not_saved() -> None:
    net, foreign = nn.Sequential(nn.BatchNorm1d(3)), torch.zeros(3)
    statistics = policy("deferred", net)
    with statistics.forward(1):
        F.batch_norm(torch.ones(2, 3), foreign, torch.ones(3), training=True, momentum=0.5)
    with pytest.raises(AccumulationError, match="no module of the model holds"):
        statistics.state_dict()
    statistics.commit()
    assert foreign.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("policy_name", ["compensated", "deferred"])
def test_a_compiled_model_runs_uncompiled_and_this_is_said(policy_name: str) -> None:
    nets = [live(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    compiled = torch.compile(nets[1], backend="eager")
    with pytest.warns(FrostlineWarning, match="runs as if it were not compiled"):
        statistics = policy(policy_name, compiled)
    x = torch.randn(8, 3)
    compiled(x.roll(1))  # compiled before the window
    nets[0](x.roll(1))
    run_window(statistics, compiled, x.split(2))
    statistics.commit()
    alone = policy(policy_name, nets[0])
    run_window(alone, nets[0], x.split(2))
    alone.commit()
    assert same_state(state(nets[0]), state(nets[1]))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 4)
        self.block = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, self.lift(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("policy_name", ["compensated", "deferred"])
def test_what_a_checkpoint_runs_again_updates_nothing(policy_name: str, reentrant: bool) -> None:
    nets = [live(Checkpointed(reentrant)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(8, 3).double()
    for net in nets:
        statistics = policy(policy_name, net)
        for microbatch in x.split(4):
            with statistics.forward(2):
                loss = (
                    (net if net is nets[0] else lambda x: nets[1].block(nets[1].lift(x)))(
                        microbatch
                    )
                    .square()
                    .sum()
                )
            with statistics.backward():
                loss.backward()
        statistics.commit()
    assert same_state(state(nets[0]), state(nets[1]))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)
