"""Tracers and replicas: torch.fx, torch.export, GraphModule, DataParallel, TorchScript."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

import frostline as fl
from frostline.errors import FreezeError
from tests.freezing.content import content, moved, steps
from tests.zoo import live

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(3)) * 1.5 + 0.4


def net() -> nn.Sequential:
    return live(  # type: ignore[return-value]
        nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(64, 3),
        )
    )


BODY = "[0-5]"


def loss(model: nn.Module) -> Tensor:
    return model(X).square().mean()


def frozen_content(model: nn.Module) -> dict[str, object]:
    return {k: v for k, v in content(model).items() if not k.startswith("6.")}


# --- torch.fx ----------------------------------------------------------------------------


def test_a_graph_traced_from_a_held_module_is_held() -> None:
    model = net()
    fl.freeze(model, BODY)
    graph = symbolic_trace(model)
    before = frozen_content(graph)
    steps(graph, loss, 2)
    assert frozen_content(graph) == before
    assert torch.equal(graph.eval()(X), model.eval()(X))


def test_a_graph_traced_before_freezing_is_held_through_its_children() -> None:
    model = net()
    graph = symbolic_trace(model)
    fl.freeze(model, BODY)
    before = frozen_content(graph)
    steps(graph, loss, 2)
    assert frozen_content(graph) == before


def test_freezing_a_graph_module_leaves_the_object_and_holds_its_children() -> None:
    """A GraphModule writes its forward to its own class, at every `recompile`."""
    graph = symbolic_trace(net())
    own_class = type(graph)
    part = fl.freeze(graph)
    assert type(graph) is own_class
    assert isinstance(graph, GraphModule)
    graph.recompile()
    graph.train()
    graph(X)
    assert part.changes() == []
    assert not graph.get_submodule("1").training


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda g: symbolic_trace(g)])
def test_a_copied_graph_module_stays_held(copied: Callable[[nn.Module], nn.Module]) -> None:
    graph = symbolic_trace(net())
    fl.freeze(graph)
    other = copied(graph).train()
    before = content(other)
    other(X)
    assert moved(before, other) == []


def test_undo_of_a_graph_module_gives_plain_children_back() -> None:
    graph = symbolic_trace(net())
    types = [type(m) for m in graph.modules()]
    fl.freeze(graph).undo()
    assert [type(m) for m in graph.modules()] == types
    before = content(graph)
    graph.train()(X)
    assert "1.running_mean" in moved(before, graph)


# --- torch.export ------------------------------------------------------------------------


def buffers_an_export_would_write(model: nn.Module) -> list[str]:
    # Without the decompositions a training-mode export claims to write nothing at all.
    program = torch.export.export(model, (X,)).run_decompositions()
    return sorted(program.graph_signature.buffers_to_mutate.values())


# torch copies its own deprecated pytree leaves there.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_a_training_mode_export_writes_no_frozen_buffer() -> None:
    model = net().train()
    statistics = ["num_batches_tracked", "running_mean", "running_var"]
    every = sorted(f"{norm}.{name}" for norm in (1, 2) for name in statistics)
    free = buffers_an_export_would_write(model)
    # An export counts what it writes; InstanceNorm never counts its batches.
    assert [n for n in every if n != "2.num_batches_tracked"] == free

    fl.freeze(model, "1")
    model.train()
    assert buffers_an_export_would_write(model) == [n for n in free if n.startswith("2.")]
    fl.freeze(model)
    model.train()
    assert buffers_an_export_would_write(model) == []


def test_an_exported_held_model_computes_what_the_held_model_does() -> None:
    model = net()
    fl.freeze(model)
    model.train()
    exported = torch.export.export(model, (X,)).module()
    assert torch.equal(exported(X), model(X))


def test_what_came_out_of_an_export_can_be_frozen_and_keeps_its_class() -> None:
    module = torch.export.export(net().eval(), (X,)).module()
    own_class = type(module)
    part = fl.freeze(module)
    assert type(module) is own_class
    module(X)
    assert part.changes() == []
    assert not any(p.requires_grad for p in module.parameters())


# --- DataParallel ------------------------------------------------------------------------


def test_replicas_of_data_parallel_are_held() -> None:
    """`replicate` shares each module's `__dict__` entries, the record among them."""
    model = net()
    fl.freeze(model, BODY)
    replica = model[1]._replicate_for_data_parallel()
    replica.train()
    assert not replica.training
    free = net()[1]._replicate_for_data_parallel()
    free.train()
    assert free.training, "control: a free replica follows"


def test_unfreezing_the_original_leaves_no_replica_half_held() -> None:
    model = net()
    part = fl.freeze(model, BODY)
    replica = model[1]._replicate_for_data_parallel()
    part.undo()
    model.train()
    assert model[1].training
    fresh = model[1]._replicate_for_data_parallel()
    assert fresh.training
    assert not replica.training, "it lives for one forward, and was made while it was held"


def test_a_model_inside_data_parallel_is_frozen_under_its_own_names() -> None:
    model = net()
    wrapped = nn.DataParallel(model)
    part = fl.freeze(wrapped, BODY)
    assert part.model is model
    assert sorted(part.tensors)[0] == "0.bias"
    before = frozen_content(model)
    steps(wrapped, loss, 2)
    assert frozen_content(model) == before


# --- TorchScript -------------------------------------------------------------------------


def test_a_script_module_is_refused_by_name() -> None:
    scripted = nn.Sequential()
    scripted.add_module("body", torch.jit.script(net()))
    with pytest.raises(FreezeError, match=r"body \(RecursiveScriptModule\).*script it after that"):
        fl.freeze(scripted)


def test_limit_a_held_norm_is_scripted_under_released_only() -> None:
    model = net()
    part = fl.freeze(model)
    with pytest.raises((RuntimeError, ValueError)):
        torch.jit.script(model)
    with part.released():
        scripted = torch.jit.script(model)
    assert torch.equal(scripted(X), model(X))


def test_limit_a_scripted_copy_is_free() -> None:
    model = net()
    part = fl.freeze(model)
    with part.released():
        scripted = torch.jit.script(copy.deepcopy(model))
    before = content(model)
    scripted.train()
    scripted(X)
    drifted = dict(scripted.named_buffers())["1.running_mean"]
    assert not torch.equal(drifted, model[1].running_mean)
    assert moved(before, model) == []


def test_a_held_model_can_be_traced_and_the_trace_drifts_not() -> None:
    """Tracing records the operations of a call, and a held model calls no update."""
    model = net()
    del model[2]  # InstanceNorm looks at sizes, which a trace turns into a warning
    fl.freeze(model)
    traced = torch.jit.trace(model.train(), X)
    before = content(model)
    traced.train()
    traced(X)
    assert moved(before, model) == []
