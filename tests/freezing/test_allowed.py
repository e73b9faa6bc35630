"""What a hold lets through, because somebody means it: it is reported by `changes()`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import FrostlineWarning, FrozenStateChanged
from tests.freezing.kinds import KINDS, Net, build, step

KIND = "BatchNorm2d"
MEMBERS = {
    "part.0.weight",
    "part.0.bias",
    "part.1.weight",
    "part.1.bias",
    "part.1.running_mean",
    "part.1.running_var",
    "part.1.num_batches_tracked",
}
FLOATS = MEMBERS - {"part.1.num_batches_tracked"}


def frozen() -> tuple[Net, fl.types.FrozenPart]:
    net = build(KIND)
    return net, fl.freeze(net, "part")


def kinds(part: fl.types.FrozenPart) -> dict[str, str]:
    return {change.name: change.kind for change in part.changes()}


def still_held(net: nn.Module, part: fl.types.FrozenPart) -> None:
    """After `part.seal()` it is held as before: a training step moves nothing."""
    part.seal()
    step(net.train(), KINDS[KIND].inputs(), torch.optim.SGD(net.parameters(), lr=0.1))
    assert part.changes() == []


# --- loading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_load_of_other_weights_is_drift_of_value(assign: bool) -> None:
    net, part = frozen()
    other = {k: v + 1 for k, v in net.state_dict().items()}
    net.load_state_dict(other, assign=assign)
    assert kinds(part) == dict.fromkeys(MEMBERS, "value")
    assert all(torch.equal(net.state_dict()[name], other[name]) for name in MEMBERS)
    with pytest.raises(FrozenStateChanged, match=r"7 of 7 frozen tensors changed"):
        part.assert_unchanged()
    still_held(net, part)


def test_load_of_the_same_weights_is_nothing() -> None:
    net, part = frozen()
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()})
    assert part.changes() == []


def test_load_of_the_same_weights_with_assign_is_reported_as_replaced() -> None:
    net, part = frozen()
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
    changes = part.changes()
    assert {c.name: c.kind for c in changes} == dict.fromkeys(MEMBERS, "replaced")
    assert {c.severity for c in changes} == {"report"}
    part.assert_unchanged()
    still_held(net, part)


@pytest.mark.parametrize("bits", [0, 1])
def test_load_that_differs_in_one_bit(bits: int) -> None:
    net, part = frozen()
    other = {k: v.clone() for k, v in net.state_dict().items()}
    other["part.1.running_var"].view(torch.int32)[1] ^= bits
    net.load_state_dict(other)
    expected = {"part.1.running_var": "value"} if bits else {}
    assert kinds(part) == expected
    if bits:
        (change,) = part.changes()
        assert change.changed_elements == 1
        assert change.max_abs is not None
        assert 0 < change.max_abs < 1e-6


# --- casts -----------------------------------------------------------------------------------

CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda net: net.half(),
    "bfloat16": lambda net: net.bfloat16(),
    "double": lambda net: net.double(),
    "half and back": lambda net: net.half().float(),
    "bfloat16 and back": lambda net: net.bfloat16().float(),
    "to(dtype)": lambda net: net.to(torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_cast_is_reported_as_a_cast(cast: str) -> None:
    net, part = frozen()
    CASTS[cast](net)
    changes = part.changes()
    # All floats, but what a rounding leaves as it was; the counter is an integer.
    assert {c.name for c in changes} <= FLOATS
    assert {"part.0.weight", "part.1.running_mean"} <= {c.name for c in changes}
    assert {(c.kind, c.severity) for c in changes} == {("cast", "report")}
    part.assert_unchanged()
    assert part.ok


def test_double_and_back_loses_nothing() -> None:
    net, part = frozen()
    net.double().float()
    # torch makes new buffers for a cast; a parameter stays the same object.
    assert {(c.kind, c.severity) for c in part.changes()} == {("replaced", "report")}
    assert set(kinds(part)) == {"part.1.running_mean", "part.1.running_var"}


@pytest.mark.parametrize("cast", CASTS)
def test_one_changed_value_under_a_cast_is_drift(cast: str) -> None:
    net, part = frozen()
    CASTS[cast](net)
    with torch.no_grad():
        net.part[1].running_mean[0] += 0.5
    drift = {c.name: c.kind for c in part.changes() if c.severity == "drift"}
    assert list(drift) == ["part.1.running_mean"]
    assert not part.ok


# --- shapes, values, modules -----------------------------------------------------------------


def test_resize_is_drift_of_shape() -> None:
    net = build("Embedding(max_norm)")
    part = fl.freeze(net, "part")
    grown = nn.Parameter(torch.cat([net.part.weight, torch.zeros(2, 4)]))
    net.part.weight = grown
    (change,) = [c for c in part.changes() if c.kind != "requires_grad"]
    assert (change.name, change.kind, change.severity) == ("part.weight", "shape", "drift")
    assert change.cause == "[10, 4] -> [12, 4]"


def test_reinitialisation_of_weights_is_drift() -> None:
    net, part = frozen()
    net.part[0].reset_parameters()
    assert kinds(part) == {"part.0.weight": "value", "part.0.bias": "value"}
    still_held(net, part)


def test_reset_parameters_of_a_norm_keeps_its_statistics() -> None:
    net, part = frozen()
    with pytest.warns(FrostlineWarning, match="reset_running_stats"):
        net.part[1].reset_parameters()
    assert kinds(part) == {"part.1.weight": "value", "part.1.bias": "value"}


def test_init_function_applied_to_the_whole_model_is_drift() -> None:
    net, part = frozen()
    net.apply(lambda m: nn.init.zeros_(m.weight) if isinstance(m, nn.Conv2d) else None)
    assert kinds(part) == {"part.0.weight": "value"}


def test_submodule_added_inside_is_reported() -> None:
    net, part = frozen()
    net.part.append(nn.Linear(3, 3))
    changes = part.changes()
    assert {c.name: c.kind for c in changes} == {
        "part.2.weight": "added",
        "part.2.bias": "added",
    }
    assert {c.severity for c in changes} == {"report"}
    part.assert_unchanged()


def test_submodule_added_beside_is_not_ours() -> None:
    net, part = frozen()
    net.adapter = nn.Linear(3, 3)
    assert part.changes() == []


def test_submodule_wrapped_is_no_replacement() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.base_layer = inner
            self.lora = nn.Conv2d(2, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base_layer(x) + self.lora(x)

    net, part = frozen()
    net.part[0] = Wrapper(net.part[0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.part[0].lora.weight.detach().clone()
    step(net.train(), KINDS[KIND].inputs(), optimizer)
    assert not torch.equal(net.part[0].lora.weight, before)
    assert kinds(part) == {"part.0.lora.weight": "added", "part.0.lora.bias": "added"}


def test_submodule_replaced_is_reported_and_refused_at_the_next_step() -> None:
    net, part = frozen()
    net.part[1] = nn.BatchNorm2d(3)
    found = {(c.name, c.kind) for c in part.changes() if c.severity == "drift"}
    fresh = {name for name in MEMBERS if name.startswith("part.1")}
    assert found == {
        ("part.1", "mode"),
        *((name, "value") for name in fresh),
        ("part.1.weight", "requires_grad"),
        ("part.1.bias", "requires_grad"),
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(FrozenStateChanged, match=r"part\.1 was replaced after freezing"):
        step(net, KINDS[KIND].inputs(), optimizer)
    # What to do stands in the message.
    part.undo()
    again = fl.freeze(net, "part.0")
    step(net, KINDS[KIND].inputs(), optimizer)
    assert again.ok


def test_replaced_submodule_is_left_out_as_the_message_says() -> None:
    net, part = frozen()
    net.part[1] = nn.BatchNorm2d(3)
    fl.unfreeze(net, "part.1")
    step(net, KINDS[KIND].inputs(), torch.optim.SGD(net.parameters(), lr=0.1))
    assert part.ok


def test_replaced_submodule_stops_no_other_model() -> None:
    net, part = frozen()
    net.part[1] = nn.BatchNorm2d(3)
    other, x = build(KIND), KINDS[KIND].inputs()
    before = other.head[2].weight.detach().clone()
    step(other, x, torch.optim.SGD(other.parameters(), lr=0.1))
    assert not torch.equal(other.head[2].weight, before)
    assert not part.ok
    with pytest.raises(FrozenStateChanged, match="replaced"):
        torch.optim.SGD(net.head.parameters(), lr=0.1).step()


def test_submodule_removed_is_missing() -> None:
    net, part = frozen()
    net.part[0].bias = None
    del net.part[1]
    found = kinds(part)
    assert set(found) == MEMBERS - {"part.0.weight"}
    assert set(found.values()) == {"missing"}
    assert not part.ok
