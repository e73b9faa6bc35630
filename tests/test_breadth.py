"""Freezing holds whatever the architecture, and the flag alone loses exactly the statistics."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

import frostline as fl
from frostline.selection import select
from tests.breadth_twins import (
    backbone_tensors,
    changed_by_flag_only,
    content,
    flag_only_twin,
    take_steps,
)
from tests.freezing.content import Content, raw
from tests.zoo import BREADTH, ZOO, Entry, fresh, seeded

MODELS = {**ZOO, **BREADTH}
every_model = pytest.mark.parametrize("name", MODELS)


def tops(model: nn.Module, entry: Entry) -> dict[str, nn.Module]:
    """The outermost modules of the backbone that can be called: of a list, its items."""
    chosen = {id(module) for _, module in select(model, entry.backbone).modules}

    def below(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if id(child) in chosen and not isinstance(child, nn.ModuleList):
                yield path + name, child
            else:
                yield from below(f"{path}{name}.", child)

    return dict(below("", model))


@every_model
def test_no_byte_of_a_frozen_backbone_changes(name: str) -> None:
    entry = MODELS[name]
    model = fresh(entry)
    part = fl.freeze(model, entry.backbone)
    head = dict(model.get_submodule(entry.head).named_parameters())
    backbone = backbone_tensors(model, entry)
    before, head_before = content(backbone), content(head)
    take_steps(model, entry, 3)
    assert content(backbone_tensors(model, entry)) == before
    assert part.ok
    head_after = content(head)
    assert all(head_after[key] != head_before[key] for key in head)
    compared = {id(tensor) for tensor in backbone.values()}
    for module in tops(model, entry).values():
        assert {id(tensor) for tensor in [*module.parameters(), *module.buffers()]} <= compared


class Call(NamedTuple):
    """What one module was called with."""

    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def recorded_calls(model: nn.Module, entry: Entry) -> list[Call]:
    """The calls of the backbone's outermost modules in one forward in training mode."""
    calls = []
    for name, module in tops(model, entry).items():

        def note(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls.append(Call(name, *deepcopy((args, kwargs))))

        module.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad(), seeded(3):
        entry.loss(model.train(), entry.batch())
    return calls


def outputs(model: nn.Module, calls: list[Call]) -> list[Content]:
    """Every tensor that comes out of these calls, byte by byte."""
    found = []
    with torch.no_grad(), seeded(4):
        for module, args, kwargs in deepcopy(calls):
            leaves = pytree.tree_leaves(model.get_submodule(module)(*args, **kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            found.append({str(i): raw(tensor) for i, tensor in enumerate(tensors)})
    return found


@every_model
def test_a_frozen_backbone_answers_in_training_mode_as_in_eval_mode(name: str) -> None:
    entry = MODELS[name]
    calls = recorded_calls(fresh(entry), entry)
    model, twin = fresh(entry), flag_only_twin(entry)
    assert {call.module for call in calls} == set(tops(model, entry))
    in_eval = outputs(twin.eval(), calls)
    assert all(in_eval)
    assert outputs(twin.train(), calls) != in_eval
    fl.freeze(model, entry.backbone)
    assert outputs(model.eval(), calls) == in_eval
    assert outputs(model.train(), calls) == in_eval


def tracking_norms(model: nn.Module, entry: Entry) -> dict[str, nn.Module]:
    """The backbone's norms that have running statistics, whoever wrote them."""
    found = select(model, entry.backbone).modules
    return {name: m for name, m in found if getattr(m, "running_mean", None) is not None}


def statistics_of_norms_that_run(entry: Entry) -> set[str]:
    """What one forward writes, by what torch documents about each kind of norm."""
    model = fresh(entry)
    written: set[str] = set()
    for name, norm in tracking_norms(model, entry).items():
        kinds = ["running_mean", "running_var"]
        # An InstanceNorm has a counter too, and never moves it.
        kinds += ["num_batches_tracked"] if isinstance(norm, _BatchNorm) else []
        names = [f"{name}.{kind}" for kind in kinds]
        norm.register_forward_hook(lambda *_, names=names: written.update(names))
    with torch.no_grad(), seeded(3):
        entry.loss(model, entry.batch())
    return written


@every_model
def test_the_flag_alone_loses_exactly_the_running_statistics(name: str) -> None:
    entry = MODELS[name]
    changed = changed_by_flag_only(entry)
    assert changed == statistics_of_norms_that_run(entry)
    assert bool(changed) == bool(tracking_norms(fresh(entry), entry))
