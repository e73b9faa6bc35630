"""The target: which tensors, under which names, frozen by whom; and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import FreezeError, ModelGone, SelectionError
from frostline.guarding.target import Target, by_flags, name_in, resolve
from tests.zoo import live


class Net(nn.Module):
    """A trunk, a norm, a tied pair and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


def net() -> Net:
    return live(Net())


TRUNK = [
    "trunk.0.weight",
    "trunk.0.bias",
    "trunk.1.weight",
    "trunk.1.bias",
    "trunk.1.running_mean",
    "trunk.1.running_var",
    "trunk.1.num_batches_tracked",
]
FLAT = [name.removeprefix("trunk.") for name in TRUNK]
TIED = ["embed.weight", "head.weight"]


def of_part() -> Target:
    model = net()
    return resolve(fl.freeze(model, "trunk"))


def of_part_and_selector() -> Target:
    model = net()
    return resolve(fl.freeze(model, ["trunk", "embed", "head"]), "trunk.1")


def of_part_of_a_submodule() -> Target:
    model = net()
    fl.freeze(model.trunk)
    return resolve(model)


def of_part_of_a_submodule_by_name() -> Target:
    model = net()
    fl.freeze(model.trunk)
    return resolve(model, "trunk.0")


def of_flags() -> Target:
    model = net()
    model.trunk.requires_grad_(False)
    return resolve(model)


def of_flags_and_part() -> Target:
    model = net()
    model.trunk.requires_grad_(False)
    fl.freeze(model, "trunk.1")
    return resolve(model)


def of_nothing_frozen() -> Target:
    return resolve(net(), "trunk.0")


def of_updated_statistics() -> Target:
    model = net()
    fl.freeze(model, "trunk", stats="update")
    return resolve(model)


def of_two_parts() -> Target:
    model = net()
    return resolve([fl.freeze(model, "trunk.0"), fl.freeze(model, "trunk")])


def of_a_flagged_list() -> Target:
    model = net()
    model.trunk.requires_grad_(False)
    return resolve([model])


class Adapted(nn.Module):
    """What PEFT makes of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(3, 3)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})


def of_adapters() -> Target:
    model = nn.ModuleDict({"q": Adapted(), "norm": nn.LayerNorm(3)})
    model.requires_grad_(False)
    for adapter in (model["q"].lora_A, model["q"].lora_B):
        adapter.requires_grad_(True)
    return resolve(model)


def of_a_shared_module() -> Target:
    shared = nn.Linear(2, 2)
    return resolve(nn.ModuleDict({"a": shared, "b": shared}).requires_grad_(False))


# What to resolve -> names, whether flags alone freeze them, how many parts.
TARGETS: dict[Callable[[], Target], tuple[list[str], set[bool], int]] = {
    of_part: (TRUNK, {False}, 1),
    of_part_and_selector: (TRUNK[2:], {False}, 1),
    of_part_of_a_submodule: (TRUNK, {False}, 1),
    of_part_of_a_submodule_by_name: (TRUNK[:2], {False}, 1),
    of_flags: (TRUNK, {True}, 0),
    of_flags_and_part: (TRUNK, {True, False}, 1),
    of_nothing_frozen: (TRUNK[:2], {False}, 0),
    of_updated_statistics: (TRUNK[:4], {False}, 1),
    of_two_parts: (TRUNK, {False}, 2),
    of_a_flagged_list: (TRUNK, {True}, 0),
    of_adapters: (["norm.bias", "norm.weight", "q.bias", "q.weight"], {True}, 0),
    of_a_shared_module: (["a.weight", "b.weight", "a.bias", "b.bias"], {True}, 0),
}


@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_targets(make) -> None:
    names, by_flag, parts = TARGETS[make]
    found = make()
    assert sorted(found.names) == sorted(names)
    assert {watched.by_flag for watched in found.tensors} == by_flag
    assert len(found.parts) == parts
    for watched in found.tensors:
        assert watched.name == watched.names[0]
        assert all(place.tensor is watched.tensor for place in watched.places)
        assert watched.by_flag is (watched.part is None) or not any(by_flag)
    assert len({id(watched.tensor) for watched in found.tensors}) == len(found.tensors)


def test_a_part_marks_what_it_covers() -> None:
    found = of_flags_and_part()
    assert {w.name for w in found.tensors if w.part is found.parts[0]} == set(TRUNK[2:])
    assert {w.name for w in found.tensors if w.by_flag} == set(TRUNK[:2])


def test_tied_weights_are_one_tensor_with_two_names() -> None:
    model = net()
    part = fl.freeze(model, ["embed", "head"])
    for found in (resolve(part), resolve(model), resolve(model, "embed"), resolve([part])):
        (watched,) = found.tensors
        assert watched.tensor is model.embed.weight
        assert watched.owner is model.embed
    assert resolve(part).names == TIED


def test_two_models_of_one_class_are_told_apart() -> None:
    one, two = live(Net()), live(Net())
    found = resolve([fl.freeze(one, "trunk"), fl.freeze(two, "trunk.0")])
    assert found.names == [f"Net[0].{n}" for n in TRUNK] + [f"Net[1].{n}" for n in TRUNK[:2]]
    assert found.models == [one, two]
    assert [name_in(found, model, "x") for model in (one, two)] == ["Net[0].x", "Net[1].x"]
    assert name_in(resolve(one, "trunk"), one, "x") == "x"


def test_models_of_two_classes_and_the_same_thing_twice() -> None:
    one, two = live(Net()), live(nn.BatchNorm1d(2)).requires_grad_(False)
    part, whole = fl.freeze(one, "trunk.0"), fl.freeze(one, "trunk")
    found = resolve((part, two, whole, part))
    assert len(found.names) == len(set(found.names)) == 7 + 5
    assert found.names[:2] == ["Net[0].trunk.0.weight", "Net[0].trunk.0.bias"]
    assert "BatchNorm1d[1].running_mean" in found.names
    assert found.parts == [part, whole]
    assert {w.name for w in found.tensors if w.by_flag} == {
        n for n in found.names if n.startswith("BatchNorm1d")
    }


def test_a_tensor_shared_by_two_models_is_watched_once() -> None:
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    student.weight = teacher.weight
    found = resolve([teacher.requires_grad_(False), student.requires_grad_(False)])
    assert [w.names for w in found.tensors] == [
        ["Linear[0].weight", "Linear[1].weight"],
        ["Linear[0].bias"],
        ["Linear[1].bias"],
    ]


def test_a_set_of_parts_and_a_list_with_a_selector() -> None:
    model = net()
    part = fl.freeze(model, "trunk")
    assert sorted(resolve({part}).names) == sorted(TRUNK)
    assert resolve([model, part], "trunk.0").names == TRUNK[:2]


def test_all_that_a_target_says_it_is() -> None:
    model = net()
    part = fl.freeze(model, "trunk")
    assert resolve(part).text == '"trunk" of Net'
    assert resolve(model).text == "what is frozen of Net"
    assert resolve(model, "trunk.0").text == '"trunk.0" of Net'
    assert [resolve(t).by_flag for t in (part, model, [model])] == [False, True, False]


def test_by_flags_may_be_nothing_and_follows() -> None:
    model = net()
    assert by_flags(model).tensors == []
    model.trunk[0].requires_grad_(False)
    assert by_flags(model).names == TRUNK[:2]
    assert sorted(by_flags(model, "embed").names) == [TIED[0], *sorted(TRUNK[:2])]
    part = fl.freeze(model, "trunk")
    found = by_flags(model)
    assert sorted(found.names) == sorted(TRUNK)
    assert found.parts == [part]
    assert not any(w.by_flag for w in found.tensors)


class Bare(nn.Module):
    """No tensor at all."""


def undone() -> fl.types.FrozenPart:
    part = fl.freeze(net(), "trunk")
    part.undo()
    return part


KEEP = net()
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nothing frozen": (
        lambda: resolve(KEEP),
        SelectionError,
        "nothing in Net is frozen.*Freeze first, or say which part.*fl.guard(model, 'backbone')",
    ),
    "no such name": (lambda: resolve(KEEP, "trnk"), SelectionError, "trnk.*trunk"),
    "no tensors": (lambda: resolve(Bare(), Bare), SelectionError, "no tensors"),
    "empty list": (lambda: resolve([]), SelectionError, "the list of parts is empty"),
    "part without what is selected": (
        lambda: resolve(fl.freeze(KEEP, "trunk.0"), "head"),
        SelectionError,
        '"head" selects nothing that .* covers.*fl.guard(model, "head")',
    ),
    "undone part": (lambda: resolve(undone()), FreezeError, "holds nothing any more"),
    "undone part in a list": (lambda: resolve([undone()]), FreezeError, "holds nothing any more"),
    "state dict": (lambda: resolve(KEEP.state_dict()), TypeError, "OrderedDict.*fl.manifest"),
    "tensor": (lambda: resolve(KEEP.head.weight), TypeError, "Parameter.*name it within its model"),
    "optimizer": (
        lambda: resolve(torch.optim.SGD(KEEP.parameters(), lr=0.1)),
        TypeError,
        "SGD.*introduce themselves",
    ),
    "parameters()": (
        lambda: resolve(KEEP.parameters()),
        TypeError,
        "generator.*buffers are watched",
    ),
    "list of parameters": (
        lambda: resolve(list(KEEP.parameters())),
        TypeError,
        "Parameter.*name it within its model",
    ),
    "swapped": (
        lambda: resolve("trunk", KEEP),
        TypeError,
        r"swapped: write fl.guard(model, 'trunk')",
    ),
    "name alone": (lambda: resolve("trunk"), TypeError, "str, no FrozenPart and no model"),
    "None": (lambda: resolve(None), TypeError, "NoneType, no FrozenPart"),
    "class": (lambda: resolve(Net), TypeError, "guard got"),
    "part whose model is gone": (
        lambda: resolve(fl.freeze(net(), "trunk")),
        ModelGone,
        "keep a reference to the model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_targets(case) -> None:
    make, error, message = BAD[case]
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(error) as caught:
        make()
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)


def test_resolving_changes_nothing() -> None:
    model = net()
    before = {n: (t, t._version, t.requires_grad) for n, t in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    resolve(model, "trunk")
    by_flags(model)
    after = {n: (t, t._version, t.requires_grad) for n, t in model.state_dict().items()}
    assert [v[1:] for v in before.values()] == [v[1:] for v in after.values()]
    assert [p.requires_grad for p in model.parameters()] == flags
