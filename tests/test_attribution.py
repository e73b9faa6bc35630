"""Attribution against a slow recomputation, and that it leaves no trace."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.attribution import Attribution, attribute
from frostline.errors import FrostlineError, SharedMemory
from frostline.freezing import freeze

State = dict[str, Tensor]


class Net(nn.Module):
    """Registered in another order than it runs, so that order has to be found by running."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.norm2 = nn.BatchNorm1d(6)
        self.norm1 = nn.BatchNorm1d(4)
        self.lift = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(torch.relu(self.norm1(x)))
        scores: Tensor = self.head(torch.relu(self.norm2(x)))
        return scores


def _drifted(seed: int = 0) -> tuple[Net, State, State, tuple[Tensor, Tensor]]:
    """A net in float64 with a life behind it, its state before and after a drift, a batch."""
    torch.manual_seed(seed)
    net = Net().double()
    for _ in range(5):
        net.train()(torch.randn(32, 4, dtype=torch.float64))
    before = copy.deepcopy(net.state_dict())
    for _ in range(5):
        net(3 * torch.randn(32, 4, dtype=torch.float64) - 1)
    after = copy.deepcopy(net.state_dict())
    x = torch.randn(50, 4, dtype=torch.float64)
    net.load_state_dict(before)
    with torch.no_grad():
        labels = net.eval()(x).argmax(1)
    return net, before, after, (x, labels)


def _output(state: State, x: Tensor) -> Tensor:
    net = Net().double()
    net.load_state_dict(state)
    with torch.no_grad():
        out: Tensor = net.eval()(x)
    return out


def _rms(a: Tensor, b: Tensor) -> float:
    return float(((a - b) ** 2).mean() ** 0.5)


# What runs first comes first; within a layer mean, variance, counter.
ORDER = [
    ("norm1", "mean", "norm1.running_mean"),
    ("norm1", "variance", "norm1.running_var"),
    ("norm1", "counter", "norm1.num_batches_tracked"),
    ("norm2", "mean", "norm2.running_mean"),
    ("norm2", "variance", "norm2.running_var"),
    ("norm2", "counter", "norm2.num_batches_tracked"),
]


def test_rows_equal_the_slow_obvious_recomputation() -> None:
    net, before, after, (x, labels) = _drifted()
    result = attribute(before, after, net, (x, labels))
    assert [(r.name, r.kind, *r.entries) for r in result.rows] == ORDER

    first, state = _output(before, x), dict(after)
    for row in result.rows:
        old = _output(state, x)
        state |= {name: before[name] for name in row.entries}
        new = _output(state, x)
        assert row.change == pytest.approx(_rms(old, first) - _rms(new, first), abs=1e-12)
        right = [(out.argmax(1) == labels).double().mean() * 100 for out in (old, new)]
        assert row.points == pytest.approx(float(right[1] - right[0]), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_rows_sum_to_the_total(seed: int) -> None:
    net, before, after, batch = _drifted(seed)
    result = attribute(before, after, net, batch)
    assert result.total == pytest.approx(_rms(*(_output(s, batch[0]) for s in (before, after))))
    assert result.total > 0.01
    assert abs(sum(row.change for row in result.rows) - result.total) < 1e-12
    assert result.points is not None
    assert result.accuracy is not None
    assert result.accuracy[0] == 100
    assert abs(sum(row.points or 0 for row in result.rows) - result.points) < 1e-9
    assert result.exact


def test_alone_equals_putting_back_only_that() -> None:
    net, before, after, (x, labels) = _drifted()
    result = attribute(before, after, net, (x, labels))
    first, last = _output(before, x), _output(after, x)
    assert [share.name for share in result.layers] == ["norm1", "norm2"]
    assert [share.kind for share in result.kinds] == ["mean", "variance", "counter"]
    for share in (*result.layers, *result.kinds):
        alone = _output({**after, **{name: before[name] for name in share.entries}}, x)
        expected = _rms(last, first) - _rms(alone, first)
        assert share.change == pytest.approx(expected, abs=1e-12)
    means = [name for name in before if name.endswith("running_mean")]
    assert sorted(result.kinds[0].entries) == sorted(means)


def test_weights_are_told_from_statistics() -> None:
    net, before, _, batch = _drifted()
    after = copy.deepcopy(before)
    after["lift.weight"] += 0.5
    result = attribute(before, after, net, batch)
    assert [(row.name, row.kind) for row in result.rows] == [("lift", "weight")]
    assert result.rows[0].change == result.total > 0


def test_counter_alone_changes_nothing() -> None:
    net, before, _, batch = _drifted()
    after = copy.deepcopy(before)
    after["norm1.num_batches_tracked"] += 1
    result = attribute(before, after, net, batch)
    assert [(row.kind, row.change) for row in result.rows] == [("counter", 0.0)]
    assert result.total == 0


def test_nothing_differs_says_so() -> None:
    net, before, _, batch = _drifted()
    result = attribute(before, copy.deepcopy(before), net, batch)
    assert result.rows == result.layers == result.kinds == ()
    assert result.total == 0
    assert "nothing differs" in str(result)


def test_nan_that_stays_is_no_difference_and_zero_of_other_sign_is_one() -> None:
    net, before, _, batch = _drifted()
    before["norm1.running_mean"][0] = 0.0
    after = copy.deepcopy(before)
    after["norm1.running_mean"][0] = -0.0
    assert len(attribute(before, after, net, batch).rows) == 1
    for state in (before, after):
        state["norm2.running_mean"][0] = float("nan")
    with pytest.raises(FrostlineError, match="not finite"):
        attribute(before, after, net, batch)


def test_live_state_dict_may_be_after() -> None:
    net, before, after, batch = _drifted()
    expected = attribute(before, after, net, batch).to_dict()
    net.load_state_dict(after)
    assert attribute(before, net.state_dict(), net, batch).to_dict() == expected
    net.load_state_dict(before)
    assert attribute(net.state_dict(), after, net, batch).to_dict() == expected


def test_shared_memory_is_refused_with_the_line_to_write() -> None:
    net, _, _, batch = _drifted()
    with pytest.raises(SharedMemory, match=r"copy\.deepcopy\(model\.state_dict\(\)\)"):
        attribute(net.state_dict(), net.state_dict(), net, batch)
    state = dict(net.state_dict())
    with pytest.raises(SharedMemory):
        attribute(state, dict(state), net, batch)


def test_wrong_shape_is_refused_by_name() -> None:
    net, before, after, batch = _drifted()
    after["norm1.running_mean"] = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(FrostlineError, match=r"norm1\.running_mean.*\n.*\(4,\)\n.*\(5,\)"):
        attribute(before, after, net, batch)


@pytest.mark.parametrize("wrong", ["before", "after", "model"])
def test_models_and_states_that_change_places_are_refused(wrong: str) -> None:
    net, before, after, batch = _drifted()
    arguments: dict[str, Any] = {"before": before, "after": after, "model": net}
    arguments[wrong] = before if wrong == "model" else net
    with pytest.raises(TypeError, match=f"`{wrong}` must be .* and is a "):
        attribute(batch=batch, **arguments)


def test_entries_that_are_no_tensors_of_the_model_are_named() -> None:
    net, before, after, batch = _drifted()
    result = attribute(before, {**after, "extra": torch.ones(1)}, net, batch)
    assert result.left_out == ("extra",)
    assert not result.exact
    assert "extra" in str(result)


class Kwargs(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return OrderedDict(loss=torch.zeros((), dtype=x.dtype), logits=self.net(x))


def test_batch_as_dict_and_output_as_dict() -> None:
    net, before, after, (x, labels) = _drifted()
    plain = attribute(before, after, net, (x, labels))
    states = [{f"net.{name}": v for name, v in s.items()} for s in (before, after)]
    result = attribute(*states, Kwargs(net), {"x": x, "labels": labels})
    assert result.accuracy == plain.accuracy
    assert [row.name for row in result.rows] == [f"net.{row.name}" for row in plain.rows]
    # One more number in the output, a loss that never changes: the mean is over one more.
    scale = (plain.total / result.total) ** 2
    assert scale == pytest.approx((x.shape[0] * 3 + 1) / (x.shape[0] * 3))


def test_batch_as_tensor_has_no_accuracy() -> None:
    net, before, after, (x, _) = _drifted()
    result = attribute(before, after, net, x)
    assert result.accuracy is None
    assert result.points is None
    assert "points" not in str(result)


def test_wrapped_names_match() -> None:
    net, before, after, batch = _drifted()
    wrapped = [{f"module.{name}": v for name, v in s.items()} for s in (before, after)]
    expected = attribute(before, after, net, batch).to_dict()
    assert attribute(*wrapped, net, batch).to_dict() == expected


def _everything(net: nn.Module) -> dict[str, Any]:
    modules = {name: dict(vars(m)) for name, m in net.named_modules()}
    return {
        "state": {k: (v, v.clone()) for k, v in net.state_dict(keep_vars=True).items()},
        # What the model's own forward writes has a version that nobody can turn back.
        "versions": {k: v._version for k, v in net.state_dict(keep_vars=True).items()
                     if "seen" not in k},
        "modes": {name: m.training for name, m in net.named_modules()},
        "hooks": {name: list(d["_forward_pre_hooks"]) for name, d in modules.items()},
        "keys": {name: list(d) for name, d in modules.items()},
        "grads": {k: (p.grad, None if p.grad is None else p.grad.clone())
                  for k, p in net.named_parameters()},
        "rng": (torch.get_rng_state(), random.getstate()),
        "grad_mode": torch.is_grad_enabled(),
    }  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class Fails(nn.Module):
    """Draws random numbers, counts its calls in Python, and fails at the call it is told to."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at, self.calls = at, 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        torch.rand(3)
        random.random()
        if self.calls == self.at:
            raise RuntimeError("stop")
        return x


@pytest.mark.parametrize("fails_at", [None, 1])
def test_everything_is_left_as_it_was(fails_at: int | None) -> None:
    net, before, after, (x, labels) = _drifted()
    whole = nn.Sequential(net, Fails(fails_at))
    net.train()
    net.norm2.eval()
    net(x).sum().backward()
    whole.register_forward_pre_hook(lambda *_: None)
    states = [{**{f"0.{k}": v for k, v in s.items()}, "1.seen": torch.zeros(())}
              for s in (before, after)]  # fmt: skip
    was = _everything(whole)
    if fails_at is None:
        assert attribute(*states, whole, (x, labels)).rows
    else:
        with pytest.raises(RuntimeError, match="stop"):
            attribute(*states, whole, (x, labels))
    now = _everything(whole)
    assert {part for part in was if not _same(was[part], now[part])} == set()
    assert whole[1].calls == 0
    for name, (tensor, _) in was["state"].items():
        assert now["state"][name][0] is tensor


def test_a_held_part_does_not_notice() -> None:
    net, before, after, batch = _drifted()
    part = freeze(net, ["norm1", "lift"])
    printed = str(part)
    assert attribute(before, after, net, batch).rows[0].change != 0
    part.assert_unchanged()
    assert str(part) == printed
    assert not net.norm1.training


class WritesInEval(nn.Module):
    """Its answer depends on how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.norm(x) * self.seen


def test_what_the_model_writes_in_eval_mode_does_not_pile_up() -> None:
    net, x = WritesInEval(), torch.randn(8, 4, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    after = copy.deepcopy(before)
    after["norm.running_mean"] += 2
    result = attribute(before, after, net, x)
    # One call each: the shift of the mean by 2, divided by sqrt(1 + eps), times one.
    assert result.total == pytest.approx(2 / (1 + 1e-5) ** 0.5, rel=1e-12)
    assert result.exact
    assert net.seen == 0


class CachesItsWeight(nn.Module):
    """As LeViT's attention does: in eval mode a copy of the weight is kept until train()."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> CachesItsWeight:
        if mode:
            self.cache = {}
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x * self.weight
        return x * self.cache.setdefault("weight", self.weight.detach().clone())


def test_a_cache_filled_before_is_not_used() -> None:
    net, x = CachesItsWeight().eval(), torch.ones(2, 4, dtype=torch.float64)
    net(x)
    before = copy.deepcopy(net.state_dict())
    after = {"weight": torch.full((4,), 3.0, dtype=torch.float64)}
    assert attribute(before, after, net, x).total == 2
    assert torch.equal(net.cache["weight"], torch.ones(4, dtype=torch.float64))


def test_prints_within_80_columns_and_refuses_to_be_a_truth_value() -> None:
    net, before, after, (x, labels) = _drifted()
    deep = net
    states = [before, after]
    name = "a_rather_long_name_of_a_module"
    for _ in range(3):
        deep = nn.ModuleDict({name: deep})  # type: ignore[assignment]
        states = [{f"{name}.{k}": v for k, v in s.items()} for s in states]

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = deep

        def forward(self, x: Tensor) -> Tensor:
            return net(x)

    states = [{f"inner.{k}": v for k, v in s.items()} for s in states]
    result = attribute(*states, Call(), (x, labels))
    assert max(map(len, str(result).splitlines())) <= 80
    assert "norm1" in str(result)
    assert "&#x27;" not in result._repr_html_()
    assert result._repr_html_().startswith("<pre>Attribution")
    with pytest.raises(TypeError, match="truth value"):
        bool(result)
    assert isinstance(result, Attribution)


class UsesAWeight(nn.Module):
    """Its `tied` is never called: the parent uses the weight. Registered first, used last."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(4, 3, bias=False, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.norm(x), self.tied.weight)


def test_a_layer_that_is_not_called_comes_after_those_that_are() -> None:
    net = UsesAWeight()
    before = copy.deepcopy(net.state_dict())
    after = copy.deepcopy(before)
    after["tied.weight"] += 1
    after["norm.running_mean"] += 1
    x = torch.randn(8, 4, dtype=torch.float64)
    result = attribute(before, after, net, x)
    assert [row.name for row in result.rows] == ["norm", "tied"]
    assert abs(sum(row.change for row in result.rows) - result.total) < 1e-12


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_state_that_lacks_entries_is_refused_by_name(side: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    whole = copy.deepcopy(net.state_dict())
    part = copy.deepcopy(whole)
    del part["1.running_var"]
    states = (part, whole) if side == "before" else (whole, part)
    with pytest.raises(FrostlineError, match=f"`{side}` lacks 1 of .*'1.running_var'"):
        attribute(*states, net, torch.randn(4, 2))
