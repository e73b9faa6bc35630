"""Identity: what was exchanged, moved, switched on is seen; what only writes or reads is not."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import frostline as fl
from frostline.guarding.identity import ROTATION, Identity, Look, is_frozen_parameter, unique
from frostline.guarding.target import resolve
from tests.test_content import Scaled, Tagged, torchao_weight
from tests.zoo import live


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.scale = torch.ones(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.fc(x)) * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def net_and_identity(select: Any = "backbone") -> tuple[Net, Identity]:
    net = Net().eval()
    net.backbone.requires_grad_(False)
    return net, Identity(resolve(net, select))


def told(look: Look) -> dict[str, list[str]]:
    """What is not empty, by name."""
    found = {
        "replaced": [w.name for w in unique(look.replaced)],
        "moved": [w.name for w in unique(look.moved)],
        "flagged": [w.name for w in unique(look.flagged)],
        "modes": look.modes,
        "modules": look.modules,
    }
    return {key: names for key, names in found.items() if names}


def within_a_rotation(identity: Identity) -> dict[str, list[str]]:
    """All that is told until each tensor had its turn."""
    found: dict[str, list[str]] = {}
    for _ in range(ROTATION):
        for key, names in told(identity.look()).items():
            found[key] = sorted({*found.get(key, []), *names})
    return found


FC = "backbone.fc.weight"


def replace_parameter(net: Net) -> None:
    net.backbone.fc.weight = nn.Parameter(net.backbone.fc.weight.detach().clone())


def replace_module(net: Net) -> None:
    net.backbone = copy.deepcopy(net.backbone)


def swap(net: Net) -> None:
    other = nn.Parameter(torch.randn(6, 6), requires_grad=False)
    torch.utils.swap_tensors(net.backbone.fc.weight, other)


def transposed(net: Net) -> None:
    net.backbone.fc.weight.data = net.backbone.fc.weight.data.t()


def share(net: Net) -> None:
    net.backbone.fc.weight.share_memory_()


AT_ONCE: dict[str, tuple[Callable[[Net], Any], dict[str, list[str]]]] = {
    "parameter replaced": (replace_parameter, {"replaced": [FC]}),
    "parameter deleted": (
        lambda n: n.backbone.fc.register_parameter("weight", None),
        {"replaced": [FC]},
    ),
    "buffer replaced": (
        lambda n: setattr(n.backbone.block[1], "running_mean", torch.zeros(6)),
        {"replaced": ["backbone.block.1.running_mean"]},
    ),
    "attribute replaced": (
        lambda n: setattr(n.backbone, "scale", torch.ones(6)),
        {"replaced": ["backbone.scale"]},
    ),
    "attribute deleted": (lambda n: delattr(n.backbone, "scale"), {"replaced": ["backbone.scale"]}),
    "module replaced": (
        lambda n: setattr(n.backbone, "fc", copy.deepcopy(n.backbone.fc)),
        {"modules": ["backbone.fc"]},
    ),
    "module replaced higher up": (replace_module, {"modules": ["backbone"]}),
    "module taken out": (lambda n: n.backbone.block.pop(1), {"modules": ["backbone.block.1"]}),
    ".data =": (
        lambda n: setattr(n.backbone.fc.weight, "data", torch.zeros(6, 6)),
        {"moved": [FC]},
    ),
    "set_": (lambda n: n.backbone.fc.weight.detach_().set_(torch.zeros(6, 6)), {"moved": [FC]}),
    "swap_tensors": (swap, {"moved": [FC]}),
    "storage freed": (
        lambda n: n.backbone.fc.weight.untyped_storage().resize_(0),
        {"moved": [FC]},
    ),
    "resize_ to more": (lambda n: n.backbone.fc.weight.resize_(900, 900), {"moved": [FC]}),
    "share_memory_": (share, {"moved": [FC]}),
    "half": (lambda n: n.backbone.fc.half(), {"moved": [FC, "backbone.fc.bias"]}),
    "channels last": (
        lambda n: setattr(n.backbone.fc.weight, "data", n.backbone.fc.weight.t().contiguous().t()),
        {"moved": [FC]},
    ),
    "train": (
        lambda n: n.train(),
        {"modes": ["backbone.fc", "backbone.block.0", "backbone.block.1", "backbone"]},
    ),
    "train of one": (lambda n: n.backbone.block[1].train(), {"modes": ["backbone.block.1"]}),
    "training = True": (lambda n: setattr(n.backbone, "training", True), {"modes": ["backbone"]}),
}

WITHIN_A_ROTATION: dict[str, tuple[Callable[[Net], Any], dict[str, list[str]]]] = {
    "same memory transposed": (transposed, {"moved": [FC]}),
    "resize_ to less": (lambda n: n.backbone.fc.weight.resize_(3, 6), {"moved": [FC]}),
    "same memory as another dtype": (
        lambda n: setattr(
            n.backbone.fc.weight, "data", n.backbone.fc.weight.data.view(torch.int32)
        ),
        {"moved": [FC]},
    ),
    "requires_grad": (
        lambda n: n.backbone.fc.requires_grad_(),
        {"flagged": ["backbone.fc.bias", FC]},
    ),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_seen_at_the_next_look(case) -> None:
    act, expected = AT_ONCE[case]
    net, identity = net_and_identity()
    assert within_a_rotation(identity) == {}
    act(net)
    found = told(identity.look())
    assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in expected.items()}


@pytest.mark.parametrize("case", WITHIN_A_ROTATION)
@pytest.mark.parametrize("everything", [False, True])
def test_seen_within_a_rotation_or_at_once_when_asked(case, everything) -> None:
    act, expected = WITHIN_A_ROTATION[case]
    net, identity = net_and_identity(None)
    act(net)
    if everything:
        found = {k: sorted(v) for k, v in told(identity.look(everything=True)).items()}
    else:
        found = within_a_rotation(identity)
    assert found == expected


def test_lazy_conjugation_of_the_same_memory_is_seen() -> None:
    net = nn.Module()
    net.w = nn.Parameter(torch.randn(4, dtype=torch.complex64), requires_grad=False)
    identity = Identity(resolve(net))
    net.w.data = net.w.data.conj()
    assert within_a_rotation(identity) == {"moved": ["w"]}


def write_in_place(net: Net) -> None:
    with torch.no_grad():
        net.backbone.fc.weight.add_(1)
        net.backbone.fc.weight.data.mul_(2)
        net.backbone.block[1].reset_running_stats()
        net.backbone.fc.weight.numpy()[0] = 3


def cast_there_and_back_in_place(net: Net) -> None:
    with torch.no_grad():
        net.backbone.fc.weight.copy_(net.backbone.fc.weight.half())


def train_the_head(net: Net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 6)).sum().backward()
        optimizer.step()


def there_and_back(net: Net) -> None:
    old = net.backbone.fc
    net.backbone.fc = nn.Linear(6, 6)
    net.backbone.fc = old


NEAR_MISSES: dict[str, Callable[[Net], Any]] = {
    "writes in place": write_in_place,
    "cast in place": cast_there_and_back_in_place,
    "zero_grad": lambda n: n.zero_grad(),
    "state_dict": lambda n: n.state_dict(),
    "load_state_dict": lambda n: n.load_state_dict(copy.deepcopy(n.state_dict())),
    "deepcopy": copy.deepcopy,
    "forward": lambda n: n(torch.randn(4, 6)),
    "version bumped": lambda n: torch._C._autograd._unsafe_set_version_counter(
        (n.backbone.fc.weight,), (9,)
    ),
    "trained head": train_the_head,
    "head replaced": lambda n: setattr(n, "head", nn.Linear(6, 3)),
    "head in training mode": lambda n: n.head.train(),
    "head moved": lambda n: n.head.double(),
    "replaced and put back": there_and_back,
    "eval again": lambda n: n.eval(),
    "requires_grad off again": lambda n: n.backbone.requires_grad_(True).requires_grad_(False),
    "hooks": lambda n: n.backbone.fc.register_forward_hook(lambda *_: None),
    "something added": lambda n: n.backbone.add_module("more", nn.Linear(2, 2)),
    "to the same device and dtype": lambda n: n.to("cpu", torch.float32),
    "a gradient": lambda n: setattr(n.backbone.fc.weight, "grad", torch.ones(6, 6)),
    "the same memory anew": lambda n: setattr(
        n.backbone.fc.weight, "data", n.backbone.fc.weight.data.view(6, 6)
    ),
    "functional_call": lambda n: torch.func.functional_call(
        n, {FC: torch.zeros(6, 6)}, torch.randn(2, 6)
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_silent(case) -> None:
    net, identity = net_and_identity()
    NEAR_MISSES[case](net)
    assert within_a_rotation(identity) == {}
    assert told(identity.look(everything=True)) == {}


def test_a_mode_is_told_once_and_after_eval_again() -> None:
    net, identity = net_and_identity()
    asked = []
    for mode in (True, True, False, True):
        net.backbone.fc.train(mode)
        asked.append(told(identity.look()))
    assert asked == [{"modes": ["backbone.fc"]}, {}, {}, {"modes": ["backbone.fc"]}]


def test_a_held_part_does_not_follow_train() -> None:
    net = live(Net())
    part = fl.freeze(net, "backbone", seal=False, stats="batch", mode="follow")
    with_mode = Identity(resolve(part))
    part.undo()
    held = fl.freeze(net, "backbone", seal=False)
    identity = Identity(resolve(held))
    net.train()
    assert "modes" not in told(identity.look())
    assert "modes" not in told(with_mode.look())


# --- whose flags have to stay off ---------------------------------------------------------


def test_whose_flag_has_to_stay_off() -> None:
    flagged = Net()
    flagged.backbone.requires_grad_(False)
    whole, half = live(Net()), live(Net())
    part = fl.freeze(whole, "backbone", seal=False)
    statistics_only = fl.freeze(half, "backbone", params=False, seal=False)
    asked = {
        "by flag": resolve(flagged),
        "part": resolve(part),
        "part of which only the statistics are frozen": resolve(statistics_only),
        "selected": resolve(Net(), "backbone"),
    }
    found = {
        name: {w.name for w in target.tensors if is_frozen_parameter(w)}
        for name, target in asked.items()
    }
    parameters = {f"backbone.{name}" for name, _ in Net().backbone.named_parameters()}
    assert found["by flag"] == found["part"] == parameters
    assert found["part of which only the statistics are frozen"] == found["selected"] == set()


# --- tensors that are more than one object ------------------------------------------------


def module_with(weight: Tensor, name: str = "weight") -> nn.Module:
    module = nn.Module()
    setattr(module, name, weight)
    return module


def test_data_of_a_decorated_parameter() -> None:
    net = module_with(Tagged(torch.randn(4, 4), requires_grad=False))
    identity = Identity(resolve(net))
    with torch.no_grad():
        net.weight.add_(1)
    assert within_a_rotation(identity) == {}
    net.weight.data = torch.zeros(4, 4)
    assert told(identity.look()) == {"moved": ["weight"]}


def test_an_inner_tensor_of_a_wrapper_is_exchanged() -> None:
    inner = Scaled(torch.ones(3, 3, dtype=torch.int8), torch.ones(3, 1))
    outer = Scaled(torch.zeros(3, 3, dtype=torch.int8), inner)
    net = module_with(outer, "codes")
    identity = Identity(resolve(net, "codes"))
    assert within_a_rotation(identity) == {}
    inner.scale = torch.ones(3, 1)
    assert told(identity.look()) == {"moved": ["codes"]}
    identity.rebase()
    inner.scale.data = torch.ones(3, 1)
    assert told(identity.look()) == {"moved": ["codes"]}
    identity.rebase()
    assert within_a_rotation(identity) == {}


@pytest.mark.filterwarnings("ignore")
def test_an_inner_tensor_of_a_torchao_weight_is_exchanged() -> None:
    weight = torchao_weight("Int8WeightOnlyConfig")
    net = module_with(nn.Parameter(weight, requires_grad=False))
    identity = Identity(resolve(net, "weight"))
    assert within_a_rotation(identity) == {}
    net.weight.qdata = net.weight.qdata.clone()
    assert told(identity.look()) == {"moved": ["weight"]}


def test_inference_tensors_have_no_version() -> None:
    with torch.inference_mode():
        net = module_with(torch.ones(3))
    identity = Identity(resolve(net, "weight"))
    assert identity.versions == []
    assert within_a_rotation(identity) == {}


def test_places_of_tied_and_parametrised_tensors() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    net["head"].weight = net["embed"].weight
    net["conv"] = parametrize.register_parametrization(nn.Linear(2, 2), "weight", nn.Identity())
    net.requires_grad_(False)
    identity = Identity(resolve(net))
    assert within_a_rotation(identity) == {}
    net["head"].weight = nn.Parameter(torch.zeros(5, 3))
    assert told(identity.look()) == {"replaced": ["embed.weight"]}
    identity, conv = Identity(resolve(net)), net["conv"]
    conv.parametrizations.weight.original = nn.Parameter(torch.ones(2, 2))
    assert told(identity.look())["replaced"] == ["conv.weight"]


def test_a_module_at_two_places_is_looked_at_at_both() -> None:
    shared = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": shared, "b": shared}).requires_grad_(False)
    for name in ("a", "b"):
        identity = Identity(resolve(net))
        net[name] = copy.deepcopy(shared)
        assert told(identity.look()) == {"modules": [name]}
        net[name] = shared


# --- versions, rebase, cost ---------------------------------------------------------------


def test_versions_are_a_hint_told_once() -> None:
    net, identity = net_and_identity()
    weight, mean = net.backbone.fc.weight, net.backbone.block[1].running_mean
    assert identity.versions_moved() == set()
    with torch.no_grad():
        weight.add_(0)
        mean.add_(1)
    assert identity.versions_moved() == {id(weight), id(mean)}
    assert identity.versions_moved() == set()
    weight.data.add_(1)
    assert identity.versions_moved() == set(), "which is why it is no proof"


def test_rebase_takes_what_is_there_now() -> None:
    net, identity = net_and_identity()
    net.backbone.fc.weight.data = torch.zeros(6, 6)
    assert told(identity.look())
    assert told(identity.look()), "said until somebody takes it as right"
    identity.rebase()
    assert within_a_rotation(identity) == {}


@pytest.mark.parametrize("turn", range(3))
def test_a_look_that_finds_something_leaves_nothing_for_later(turn) -> None:
    # Whoever hears of a move rebases, so what waits for its turn would be taken as right.
    net, identity = net_and_identity()
    for _ in range(turn):
        identity.look()
    transposed(net)
    net.backbone.fc.bias.data = torch.zeros(6)
    assert told(identity.look())["moved"] == ["backbone.fc.bias", FC]


def test_flags_are_seen_although_something_moves_at_every_step() -> None:
    net, identity = net_and_identity(None)
    for step in range(5):
        net.backbone.fc.weight.requires_grad_(step == 4)
        net.backbone.fc.bias.data = torch.zeros(6)
        assert told(identity.look()).get("flagged", []) == ([FC] if step == 4 else [])
        identity.rebase()


def calls_of(function: Callable[[], Any]) -> int:
    """Calls of Python functions; builtins in C loops are what makes a look cheap."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_a_look_costs_few_python_calls_for_each_tensor() -> None:
    def cost(layers: int) -> int:
        net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)]).requires_grad_(False)
        identity = Identity(resolve(net))
        return calls_of(identity.look)

    small, large = cost(100), cost(500)
    tensors = 800
    # One tensor in 16 is looked at closely, with a few calls; for the others none at all.
    assert large - small <= 4 * tensors / ROTATION + 20
