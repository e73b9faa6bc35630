"""What `params`, `stats` and `mode` mean, by the formula of each norm written out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import FreezeError, FrostlineWarning
from tests.zoo import live

STATS = ("hold", "batch", "update")
MODES = ("eval", "follow")

NORMS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class WithDropout(nn.Module):
    """A norm, then dropout, then something that trains."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(norm, nn.Dropout(0.5))
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def net_of(norm: str) -> WithDropout:
    net = live(WithDropout(NORMS[norm]()))
    assert isinstance(net, WithDropout)
    return net


def inputs() -> Tensor:
    return torch.randn(4, 3, 5, 5) * 2 + 1


def with_running(norm: nn.Module, x: Tensor) -> Tensor:
    return _scaled(norm, x, norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1))


def with_batch(norm: nn.Module, x: Tensor) -> Tensor:
    dims = (2, 3) if isinstance(norm, nn.InstanceNorm2d) else (0, 2, 3)
    mean = x.mean(dims, keepdim=True)
    return _scaled(norm, x, mean, x.var(dims, unbiased=False, keepdim=True))


def _scaled(norm: nn.Module, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    normal = (x - mean) / (var + norm.eps).sqrt()
    return normal * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def updated(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The statistics that plain torch would leave: new = (1 - momentum) * old + momentum * seen."""
    # InstanceNorm has the counter and never counts.
    count = norm.num_batches_tracked + (0 if isinstance(norm, nn.InstanceNorm2d) else 1)
    momentum = norm.momentum if norm.momentum is not None else 1.0 / count.item()
    per = (2, 3) if isinstance(norm, nn.InstanceNorm2d) else (0, 2, 3)
    mean, var = x.mean(per), x.var(per, unbiased=True)
    if isinstance(norm, nn.InstanceNorm2d):
        mean, var = mean.mean(0), var.mean(0)
    return {
        "running_mean": (1 - momentum) * norm.running_mean + momentum * mean,
        "running_var": (1 - momentum) * norm.running_var + momentum * var,
        "num_batches_tracked": count,
    }


def statistics(norm: nn.Module) -> dict[str, Tensor]:
    return {name: getattr(norm, name).clone() for name in STATISTICS}


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name in STATISTICS:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6, msg=name)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name in STATISTICS:
        assert torch.equal(left[name], right[name]), name


SWITCHES = list(itertools.product(STATS, MODES, (True, False)))
TABLE = list(itertools.product(NORMS, STATS, MODES, (True, False)))


@pytest.mark.parametrize(("norm", "stats", "mode", "params"), TABLE)
def test_in_eval_every_switch_normalises_with_the_running_statistics(
    norm: str, stats: str, mode: str, params: bool
) -> None:
    net, x = net_of(norm), inputs()
    part = fl.freeze(net, "body", stats=stats, mode=mode, params=params)
    expected, before = with_running(net.body[0], x), statistics(net.body[0])
    net.eval()
    torch.testing.assert_close(net.body(x), expected)
    assert_same(statistics(net.body[0]), before)
    assert part.changes() == []


@pytest.mark.parametrize(("norm", "stats", "mode", "params"), TABLE)
def test_in_training_stats_decides(norm: str, stats: str, mode: str, params: bool) -> None:
    net, x = net_of(norm), inputs()
    part = fl.freeze(net, "body", stats=stats, mode=mode, params=params)
    layer = net.body[0]
    before, after = statistics(layer), updated(layer, x)
    expected = with_running(layer, x) if stats == "hold" else with_batch(layer, x)
    net.train()
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    if stats == "update":
        close(statistics(layer), after)
        assert not torch.equal(layer.running_mean, before["running_mean"])
    else:
        assert_same(statistics(layer), before)
    assert part.changes() == []
    assert layer.training is (stats != "hold")


@pytest.mark.parametrize(("stats", "mode", "params"), SWITCHES)
def test_mode_decides_dropout(stats: str, mode: str, params: bool) -> None:
    net = net_of("BatchNorm2d")
    fl.freeze(net, "body", stats=stats, mode=mode, params=params)
    net.train()
    ones = torch.ones(1000)
    dropped = not torch.equal(net.body[1](ones), ones)
    # Frozen weights or not: below the norm of params=False something trains, the dropout has none.
    assert dropped is (mode == "follow")


@pytest.mark.parametrize(("stats", "mode", "params"), SWITCHES)
def test_params_decides_flags_and_members(stats: str, mode: str, params: bool) -> None:
    net = net_of("BatchNorm2d")
    part = fl.freeze(net, "body", stats=stats, mode=mode, params=params)
    assert net.body[0].weight.requires_grad is not params
    expected = {"body.0.weight", "body.0.bias"} if params else set()
    if stats != "update":
        expected |= {f"body.0.{name}" for name in STATISTICS}
    assert set(part.tensors) == expected


def test_params_false_lets_the_affine_part_train() -> None:
    net = net_of("BatchNorm2d")
    part = fl.freeze(net, "body", params=False)
    before = net.body[0].weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()(inputs()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net.body[0].weight, before)
    assert part.changes() == []


def test_eval_output_is_bit_identical() -> None:
    for norm, stats, mode in itertools.product(NORMS, STATS, MODES):
        net, x = net_of(norm).eval(), inputs()
        with torch.no_grad():
            expected = net(x)
            fl.freeze(net, "body", stats=stats, mode=mode)
            assert torch.equal(net(x), expected)


@pytest.mark.parametrize("norm", NORMS)
def test_batch_equals_plain_training_forward_and_gradients(norm: str) -> None:
    net, x = net_of(norm), inputs()
    plain = copy.deepcopy(net.body[0]).train().requires_grad_(False)
    fl.freeze(net, "body", stats="batch", mode="follow")
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    left, right = net.train().body[0](mine), plain(theirs)
    assert torch.equal(left, right)
    left.square().sum().backward()
    right.square().sum().backward()
    assert mine.grad is not None
    assert torch.equal(mine.grad, theirs.grad)


def test_batch_is_refused_where_torch_does_not_do_it() -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("running_var", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x if self.training else x - self.running_mean.view(1, -1, 1, 1)

    net = nn.Sequential(OwnNorm())
    with pytest.raises(FreezeError, match=r'OwnNorm.*stats="batch"'):
        fl.freeze(net, stats="batch")
    fl.freeze(net, stats="hold", mode="follow")
    assert net.train()[0].training is False


# --- parts that overlap ----------------------------------------------------------------------


@pytest.mark.parametrize("first", STATS)
@pytest.mark.parametrize("second", STATS)
def test_hold_wins_over_batch_wins_over_update(first: str, second: str) -> None:
    net, x = net_of("BatchNorm2d"), inputs()
    layer = net.body[0]
    for stats in (first, second):
        fl.freeze(net, "body", stats=stats, mode="follow")
    before = statistics(layer)
    wins = min(first, second, key=STATS.index)
    expected = with_running(layer, x) if wins == "hold" else with_batch(layer, x)
    net.train()
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.running_mean, before["running_mean"]) is (wins != "update")


@pytest.mark.parametrize("modes", [("eval", "follow"), ("follow", "eval")])
def test_eval_wins_over_follow(modes: tuple[str, str]) -> None:
    net = net_of("BatchNorm2d")
    parts = [fl.freeze(net, "body", mode=mode) for mode in modes]
    assert net.train().body[1].training is False
    parts[modes.index("eval")].undo()
    assert net.body[1].training is True
    assert net.body[0].training is False


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_what_is_left_decides_after_an_undo(order: tuple[int, ...]) -> None:
    net = net_of("BatchNorm2d")
    parts = [fl.freeze(net, "body", stats=stats, mode="follow") for stats in STATS]
    layer, left = net.body[0], dict(zip(STATS, parts, strict=True))
    for i in order:
        left.pop(STATS[i]).undo()
        before, x = statistics(layer), inputs()
        expected = with_running(layer, x) if "hold" in left else with_batch(layer, x)
        net.train()
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        moves = not {"hold", "batch"} & set(left)
        assert torch.equal(layer.running_mean, before["running_mean"]) is not moves
    assert type(layer) is nn.BatchNorm2d


def test_parameter_stays_frozen_while_any_part_covers_it() -> None:
    net = net_of("BatchNorm2d")
    outer, inner = fl.freeze(net, "body"), fl.freeze(net, "body.0")
    outer.undo()
    assert net.body[0].weight.requires_grad is False
    inner.undo()
    assert net.body[0].weight.requires_grad is True


# --- calls that the hold ignores -------------------------------------------------------------


@pytest.mark.parametrize("stats", STATS)
def test_reset_running_stats(stats: str) -> None:
    net = net_of("BatchNorm2d")
    part = fl.freeze(net, "body", stats=stats)
    before = statistics(net.body[0])
    if stats == "update":
        net.body[0].reset_running_stats()
        assert net.body[0].num_batches_tracked == 0
        return
    with pytest.warns(FrostlineWarning, match=r"reset_running_stats\(\).*BatchNorm2d was ignored"):
        net.body[0].reset_running_stats()
    net.body[0].reset_running_stats()  # counted, and warned of once: warnings are errors here
    assert_same(statistics(net.body[0]), before)
    (call,) = [c for c in part.ignored_calls if c.what == "reset_running_stats()"]
    assert (call.count, call.modules) == (2, 1)
    assert __file__ in call.caller
    assert "reset_running_stats() 2 times" in " ".join(str(part).split())


def test_ignored_train_is_counted_with_the_first_caller() -> None:
    net = net_of("BatchNorm2d")
    part = fl.freeze(net, "body")
    for _ in range(3):
        net.train()
    net.eval()
    (call,) = part.ignored_calls
    assert (call.what, call.count) == ("train()", 3)
    assert __file__ in call.caller


def test_control_nothing_was_ignored() -> None:
    net = net_of("BatchNorm2d")
    part = fl.freeze(net, "body")
    net.eval()
    assert part.ignored_calls == []


@pytest.mark.parametrize("asked", [True, False])
def test_last_mode_asked_for_is_given_at_undo(asked: bool) -> None:
    net = net_of("BatchNorm2d").train(not asked)
    part = fl.freeze(net, "body")
    net.train(asked)
    part.undo()
    assert {m.training for m in net.modules()} == {asked}


@pytest.mark.parametrize("select", ["body.0.*", "**.running_*", "body.0.running_mean"])
@pytest.mark.parametrize("norm", NORMS)
def test_statistics_selected_without_their_norm_are_held(norm: str, select: str) -> None:
    net = net_of(norm)
    part = fl.freeze(net, select)
    net.train()(inputs())
    assert part.changes() == []
    part.undo()
    assert net.train().body[0].training
