"""Copies own their parts: they hold on their own, and letting one go leaves the other held."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from tests.everything import contents, everything
from tests.zoo import ZOO


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _dataclass_like(model: nn.Module) -> nn.Module:
    """A model inside of something that is copied as a whole."""
    return copy.deepcopy({"student": [model]})["student"][0]


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "deepcopy of a container": _dataclass_like,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle protocol 2": lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
    "torch.save": _saved,
    "copy of a copy": lambda m: copy.deepcopy(copy.deepcopy(m)),
    "deepcopy of a pickle": lambda m: copy.deepcopy(pickle.loads(pickle.dumps(m))),
}

by_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


def frozen_mlp() -> tuple[nn.Module, fl.types.FrozenPart]:
    model = ZOO["mlp_bn1d"].build()
    return model, fl.freeze(model, "backbone")


def train(model: nn.Module, name: str = "mlp_bn1d", steps: int = 2) -> None:
    entry = ZOO[name]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        entry.loss(model, entry.batch()).backward()
        optimizer.step()


def moved(before: dict[str, bytes], model: nn.Module) -> set[str]:
    after = contents(model)
    return {name for name in before if before[name] != after[name]}


@by_copy
def test_a_copy_owns_its_part(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, part = frozen_mlp()
    other = copied(model)
    (own,) = fl.parts(other)
    assert own is not part
    assert own.model is other
    assert part.model is model
    assert own.switches == part.switches
    assert own.ok
    assert set(own.tensors) == set(part.tensors)
    assert not {id(t) for t in own.tensors.values()} & {id(t) for t in part.tensors.values()}


@by_copy
def test_a_copy_holds_without_the_original(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, part = frozen_mlp()
    other = copied(model)
    del model, part
    gc.collect()
    before = contents(other)
    train(other)
    assert moved(before, other) == {"head.weight", "head.bias"}
    assert fl.parts(other)[0].ok


@by_copy
def test_undo_of_the_original_leaves_the_copy_held(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    model, part = frozen_mlp()
    other = copied(model)
    part.undo()
    before = contents(other)
    train(other)
    assert moved(before, other) == {"head.weight", "head.bias"}
    before = contents(model)
    train(model)
    assert moved(before, model) == set(before)


@by_copy
def test_undo_of_the_copy_leaves_the_original_held(
    copied: Callable[[nn.Module], nn.Module],
) -> None:
    model, part = frozen_mlp()
    other = copied(model)
    before = everything(model)
    fl.parts(other)[0].undo()
    assert everything(model) == before
    assert fl.parts(other) == []
    untouched = contents(other)
    train(other)
    assert moved(untouched, other) == set(untouched)
    assert part.ok


@by_copy
def test_unfreeze_of_a_copy(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, part = frozen_mlp()
    other = copied(model)
    thawed = fl.unfreeze(other)
    assert {id(p) for p in thawed} == {id(p) for p in other.backbone.parameters()}
    assert fl.parts(other) == []
    before = contents(other)
    train(other)
    assert moved(before, other) == set(before)
    train(model)
    assert part.ok


@by_copy
def test_a_gradient_written_by_hand_on_a_copy(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, _ = frozen_mlp()
    other = copied(model)
    del model
    before = contents(other)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.1)
    for parameter in other.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert moved(before, other) == {"head.weight", "head.bias"}


def test_control_a_gradient_written_by_hand_moves_what_only_a_flag_freezes() -> None:
    model = ZOO["mlp_bn1d"].build()
    model.backbone.requires_grad_(False)
    other = copy.deepcopy(model)
    before = contents(other)
    for parameter in other.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(other.parameters(), lr=0.1).step()
    assert "backbone.0.weight" in moved(before, other)


# --- submodules ----------------------------------------------------------------------------------

SUBCOPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": COPIES["deepcopy"],
    "pickle": COPIES["pickle"],
    "torch.save": COPIES["torch.save"],
}


@pytest.mark.parametrize("copied", SUBCOPIES.values(), ids=SUBCOPIES)
def test_a_copy_of_a_submodule_is_held(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, part = frozen_mlp()
    backbone = copied(model.backbone)
    before = contents(backbone)
    backbone.train()
    backbone(torch.randn(8, 12))
    assert contents(backbone) == before
    assert not any(p.requires_grad for p in backbone.parameters())
    (own,) = fl.parts(backbone)
    assert set(own.tensors) == {n.removeprefix("backbone.") for n in part.tensors}
    assert part.model is model
    fl.unfreeze(backbone)
    backbone.train()
    backbone(torch.randn(8, 12))
    assert moved(before, backbone) == {n for n in before if "running" in n or "tracked" in n}
    train(model)
    assert part.ok


def test_a_gradient_written_by_hand_on_a_copy_of_a_submodule() -> None:
    model, _ = frozen_mlp()
    backbone = copy.deepcopy(model.backbone)
    fl.parts(backbone)
    before = contents(backbone)
    for parameter in backbone.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(backbone.parameters(), lr=0.1).step()
    assert contents(backbone) == before


def test_a_student_copied_from_a_frozen_teacher_is_held_too() -> None:
    teacher = ZOO["mlp_bn1d"].build()
    fl.freeze(teacher)
    student = copy.deepcopy(teacher)
    assert not any(p.requires_grad for p in student.parameters())
    student.train()
    assert not any(m.training for m in student.modules() if isinstance(m, nn.BatchNorm1d))
    # The one line that makes it a student.
    assert len(fl.unfreeze(student)) == len(list(student.parameters()))
    old_teacher, old_student = contents(teacher), contents(student)
    train(student)
    train_nothing(teacher)
    assert moved(old_student, student) == set(old_student)
    assert contents(teacher) == old_teacher


def train_nothing(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        model(ZOO["mlp_bn1d"].batch()[0])


def test_a_shallow_copy_of_a_module_is_no_second_part() -> None:
    model, part = frozen_mlp()
    shallow = copy.copy(model)
    assert fl.parts(model) == [part]
    assert fl.parts(shallow) == []


# --- a part as attribute of its own module -------------------------------------------------------


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = ZOO["mlp_bn1d"].build()
        self.part = fl.freeze(self, "net.backbone")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@by_copy
def test_a_part_as_attribute_of_its_own_module(copied: Callable[[nn.Module], nn.Module]) -> None:
    owner = Owner()
    other: Any = copied(owner)
    assert other.part is not owner.part
    assert other.part.model is other
    assert fl.parts(other) == [other.part]
    before = contents(other)
    train(other.net)
    assert moved(before, other) == {"net.head.weight", "net.head.bias"}
    other.part.undo()
    assert fl.parts(other) == []
    assert other.net.backbone[0].weight.requires_grad
    assert fl.parts(owner) == [owner.part]


def test_a_part_as_attribute_of_a_submodule_of_its_model() -> None:
    model, part = frozen_mlp()
    model.head.part = part
    other: Any = copy.deepcopy(model)
    assert other.head.part.model is other
    assert fl.parts(other) == [other.head.part]


def test_a_part_alone_is_not_copied() -> None:
    """A copy of the handle would hold nothing: it stays the handle of its model."""
    model, part = frozen_mlp()
    assert copy.deepcopy(part) is part
    assert copy.deepcopy({"a": part, "model": None})["a"] is part
    assert part.model is model
    assert "its model is gone" in str(pickle.loads(pickle.dumps(part)))


def test_a_part_pickled_beside_its_model() -> None:
    model, part = pickle.loads(pickle.dumps(frozen_mlp()))
    assert part.model is model
    assert fl.parts(model) == [part]
    assert part.ok


# --- drift in copies is found by the copy's part -------------------------------------------------


@by_copy
def test_each_part_judges_its_own_model(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, part = frozen_mlp()
    other = copied(model)
    (own,) = fl.parts(other)
    other.backbone[1].running_mean.data += 1
    assert [c.name for c in own.changes()] == ["backbone.1.running_mean"]
    assert part.changes() == []
    model.backbone[0].weight.data += 1
    assert [c.name for c in part.changes()] == ["backbone.0.weight"]
    assert [c.name for c in own.changes()] == ["backbone.1.running_mean"]


@by_copy
def test_a_replaced_module_of_a_copy(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, _ = frozen_mlp()
    other = copied(model)
    other.train()
    other.backbone[4] = nn.BatchNorm1d(16)
    with pytest.raises(fl.errors.FrozenStateChanged, match=r"backbone\.4 was replaced"):
        other.train()


@pytest.mark.parametrize("name", ["resnet18", "wav2vec2", "gpt2", "lstm", "transformer"])
def test_the_zoo(name: str) -> None:
    entry = ZOO[name]
    model = entry.build(steps=0)
    part = fl.freeze(model, entry.backbone)
    other = copy.deepcopy(model)
    if name != "wav2vec2":  # torch refuses to pickle parametrised modules, held or not
        other = pickle.loads(pickle.dumps(other))
    before = contents(other)
    train(other, name, steps=1)
    covered = set(part.tensors)
    assert not moved(before, other) & covered
    assert moved(before, other)
    assert fl.parts(other)[0].ok


def test_undo_on_a_copy_brings_flags_back_but_not_the_originals_gradients() -> None:
    model = ZOO["mlp_bn1d"].build()
    ZOO["mlp_bn1d"].loss(model, ZOO["mlp_bn1d"].batch()).backward()
    gradients = [p.grad for p in model.backbone.parameters()]
    part = fl.freeze(model, "backbone")
    other = copy.deepcopy(model)
    fl.parts(other)[0].undo()
    assert all(p.requires_grad and p.grad is None for p in other.backbone.parameters())
    part.undo()
    assert [p.grad for p in model.backbone.parameters()] == gradients
