"""FrozenPart: what it covers, how it prints, what it counts, and how long it lives."""

from __future__ import annotations

import gc
import json
import weakref
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import frostline as fl
from frostline._results import elide
from frostline.errors import FrostlineWarning, FrozenStateChanged, ModelGone
from tests.everything import contents
from tests.zoo import ZOO


def mlp() -> nn.Module:
    return ZOO["mlp_bn1d"].build()


# --- what it covers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_bn1d", "lstm", "gpt2", "hf_resnet"])
def test_tensors_and_modules(name: str) -> None:
    entry = ZOO[name]
    model = entry.build(steps=0)
    part = fl.freeze(model)
    expected = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    expected |= {n for n, _ in model.named_buffers(remove_duplicate=False)}
    assert set(part.tensors) == expected
    assert part.modules == dict(model.named_modules())
    for key, tensor in part.tensors.items():
        owner, _, attribute = key.rpartition(".")
        assert getattr(model.get_submodule(owner), attribute) is tensor


def test_update_leaves_statistics_out() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone", stats="update")
    assert not any("running" in name or "tracked" in name for name in part.tensors)
    assert "backbone.1.weight" in part.tensors


def test_params_false_leaves_parameters_out() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone", params=False)
    assert set(part.tensors) == {
        f"backbone.{i}.{name}"
        for i in (1, 4)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_switches() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone", exclude="backbone.4", stats="batch", mode="follow")
    assert part.switches == {
        "select": '"backbone"',
        "exclude": '"backbone.4"',
        "params": True,
        "stats": "batch",
        "mode": "follow",
        "modules": ["backbone", "backbone.0", "backbone.1", "backbone.2", "backbone.3"],
    }


# --- how it looks --------------------------------------------------------------------------------


def rows(part: fl.types.FrozenPart) -> dict[str, str]:
    """The labels of the printed part, and what stands beside them, joined over lines."""
    found: dict[str, str] = {}
    label = ""
    for line in str(part).splitlines()[1:]:
        assert line.startswith("  ")
        label = line[2:12].strip() or label
        found[label] = " ".join([found.get(label, ""), line[12:].strip()]).strip()
    return found


@pytest.mark.parametrize("name", ["resnet18", "levit", "hf_vit", "t5", "wav2vec2", "gpt2", "lstm"])
def test_print_fits_80_columns(name: str) -> None:
    entry = ZOO[name]
    model = entry.build(steps=0)
    part = fl.freeze(model, entry.backbone)
    for _ in range(3):
        model.train()
    lines = str(part).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == (f'FrozenPart  "{entry.backbone}"  of {elide(type(model).__name__, 20)}')
    assert set(rows(part)) >= {"held", "trainable", "sealed", "switches"}
    assert "\n" not in repr(part)


def test_print_counts() -> None:
    model = mlp()
    shown = rows(fl.freeze(model, "backbone"))
    parameters = list(model.backbone.parameters())
    size = sum(p.numel() for p in parameters)
    assert shown["held"] == (
        f"{len(parameters)} parameters ({size}), 6 buffers; 2 modules in eval mode of 6"
    )
    assert shown["trainable"] == "2 parameters (85) in head"
    assert shown["sealed"].startswith("14 tensors, ")
    assert shown["switches"] == "params=True, stats='hold', mode='eval'"


def test_print_says_when_nothing_is_trainable() -> None:
    model = mlp()
    assert rows(fl.freeze(model))["trainable"] == "nothing"


def test_print_of_very_long_names() -> None:
    path = "base.vision_model.encoder.layers.23.self_attention.query_projection.inner.deep.deeper"
    model: nn.Module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    for name in reversed(path.split(".")):
        outer = nn.Module()
        outer.add_module(name, model)
        model = outer
    with pytest.warns(FrostlineWarning, match="never trained"):
        part = fl.freeze(model, path)
    model.train()
    assert max(map(len, str(part).splitlines())) <= 80


def test_to_dict_is_json() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    model.train()
    data = json.loads(json.dumps(part.to_dict()))
    assert data["version"] == 1
    assert data["sealed"] is True
    assert data["select"] == '"backbone"'
    assert data["tensors"] == list(part.tensors)
    assert [(call["what"], call["count"]) for call in data["ignored"]] == [("train()", 1)]


def test_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"use \.ok"):
        bool(fl.freeze(mlp(), "backbone"))


# --- what the hold ignored -----------------------------------------------------------------------


def test_train_calls_are_counted_with_the_first_line() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    assert part.ignored_calls == []
    line = _line() + 2
    for _ in range(3):
        model.train()
    model.train()
    (call,) = part.ignored_calls
    assert (call.what, call.count, call.modules) == ("train()", 4, 2)
    assert call.caller == f"{__file__}:{line}"
    assert f"train() 4 times by 2 modules, first at {__file__}:{line}"[:30] in rows(part)["ignored"]


def _line() -> int:
    import sys

    return sys._getframe(1).f_lineno


def test_eval_is_no_ignored_call() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    model.eval()
    model.train(False)
    assert part.ignored_calls == []


def test_each_part_counts_its_own_modules() -> None:
    model = mlp()
    first = fl.freeze(model, "backbone.1")
    second = fl.freeze(model, "backbone.4")
    model.backbone[1].train()
    assert [c.count for c in first.ignored_calls] == [1]
    assert second.ignored_calls == []


def test_reset_warns_once_a_module_and_changes_nothing() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    before = contents(model)
    with pytest.warns(FrostlineWarning) as caught:
        _three_times(model.backbone[1].reset_running_stats)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert f"reset_running_stats() on a held BatchNorm1d was ignored, at {__file__}:" in text
    assert "fl.unfreeze(model, ...)" in text
    assert caught[0].filename == __file__
    assert contents(model) == before
    assert [(c.what, c.count) for c in part.ignored_calls] == [("reset_running_stats()", 3)]


def _three_times(call: Callable[[], None]) -> None:
    for _ in range(3):
        call()


def test_reset_without_a_hold_works() -> None:
    model = mlp()
    fl.freeze(model, "backbone").undo()
    model.backbone[1].reset_running_stats()
    assert not model.backbone[1].running_mean.any()


def test_reset_parameters_of_a_held_norm_keeps_the_statistics() -> None:
    model = mlp()
    fl.freeze(model, "backbone")
    old = model.backbone[1].running_mean.clone()
    with pytest.warns(FrostlineWarning, match="was ignored"):
        model.backbone[1].reset_parameters()
    assert torch.equal(model.backbone[1].running_mean, old)


def test_update_bn_does_not_warn_and_does_not_write() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    before = contents(model)
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    update_bn([torch.randn(8, 12)], model)
    assert contents(model) == before
    assert part.ok
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == momenta


# --- how long it lives ---------------------------------------------------------------------------


def test_a_part_keeps_no_model_alive() -> None:
    model = mlp()
    reference = weakref.ref(model)
    part = fl.freeze(model, "backbone")
    del model
    gc.collect()
    assert reference() is None
    for use in (part.changes, lambda: part.tensors, part.seal, part.as_code, lambda: part.model):
        with pytest.raises(ModelGone, match=r'model of this FrozenPart \("backbone"\) is gone'):
            use()
    assert str(part) == 'FrozenPart  "backbone"  (its model is gone)'
    part.undo()


def test_a_model_keeps_its_part_alive() -> None:
    model = mlp()
    fl.freeze(model, "backbone")
    gc.collect()
    (part,) = fl.parts(model)
    assert part.ok
    part.undo()
    assert fl.parts(model) == []


def test_with_undoes_at_the_exit_also_after_an_exception() -> None:
    model = mlp()
    with pytest.raises(ZeroDivisionError), fl.freeze(model, "backbone") as part:
        1 / len([p for p in part.tensors.values() if p.requires_grad])
    assert model.backbone[0].weight.requires_grad
    assert fl.parts(model) == []


def test_parts_of_a_submodule_and_of_a_wrapper() -> None:
    model = mlp()
    inner = fl.freeze(model.backbone, "1")
    assert fl.parts(model) == [inner]
    assert fl.parts(torch.compile(model, backend="eager")) == [inner]
    assert fl.parts(model.head) == []


def test_several_parts_in_order() -> None:
    model = mlp()
    found = [fl.freeze(model, "backbone"), fl.freeze(model, "backbone.1"), fl.freeze(model, "head")]
    assert fl.parts(model) == found
    found[1].undo()
    assert fl.parts(model) == [found[0], found[2]]


def test_released_gives_plain_classes_and_holds_again() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    assert type(model.backbone[1]) is not nn.BatchNorm1d
    with part.released():
        assert type(model.backbone[1]) is nn.BatchNorm1d
        assert not model.backbone[1].training
        assert not model.backbone[0].weight.requires_grad
    model.train()
    assert not model.backbone[1].training
    assert fl.parts(model) == [part]
    assert part.ok


def test_released_verifies_at_its_exit() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    with pytest.raises(FrozenStateChanged, match="running_mean"), part.released():
        model.backbone[1].train()(torch.randn(4, 16))
    model.train()
    assert not model.backbone[1].training


def test_as_code_runs_and_does_the_same() -> None:
    held, coded = mlp(), mlp()
    part = fl.freeze(held, "backbone")
    namespace: dict = {}
    exec(part.as_code(), namespace)
    coded = namespace["freeze"](coded)
    entry = ZOO["mlp_bn1d"]
    for model in (held, coded):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            model.train()
            entry.loss(model, entry.batch()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert contents(held) == contents(coded)
    assert part.ok


def test_a_handle_is_no_model() -> None:
    net = nn.Sequential(OrderedDict(a=nn.Linear(2, 2)))
    part = fl.freeze(net)
    with pytest.raises(AttributeError, match=r"no attribute 'train'.*works in place"):
        part.train()
    with pytest.raises(AttributeError, match=r"no attribute 'trian'$"):
        part.trian()
    with pytest.raises(TypeError, match=r"Drop the assignment: write fl\.freeze\(model"):
        part(torch.zeros(1, 2))
