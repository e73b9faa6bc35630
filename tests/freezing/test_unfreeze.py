"""`unfreeze` makes trainable, whoever froze it; parts shrink, and undo what is left of them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import FrostlineWarning, SelectionError
from tests.everything import contents, everything
from tests.zoo import ZOO


def mlp() -> nn.Module:
    return ZOO["mlp_bn1d"].build()


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> set[str]:
    entry = ZOO["mlp_bn1d"]
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    before = contents(model)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        entry.loss(model, entry.batch()).backward()
        optimizer.step()
    after = contents(model)
    return {name for name in before if before[name] != after[name]}


def all_that_trains() -> set[str]:
    """What training moves in a model that was never frozen.

    Nearly all: the gradient of a bias before a norm is 0 but for rounding, by machine.
    """
    model = mlp()
    moved = train(model)
    assert set(contents(model)) - moved <= {"backbone.0.bias", "backbone.3.bias"}
    return moved


# --- whoever froze it ----------------------------------------------------------------------------


def _by_freeze(model: nn.Module) -> None:
    fl.freeze(model, "backbone")


def _by_flag(model: nn.Module) -> None:
    model.backbone.requires_grad_(False)


def _by_flag_then_flagged(model: nn.Module) -> None:
    _by_flag(model)
    fl.freeze(model, fl.FLAGGED)


def _twice(model: nn.Module) -> None:
    fl.freeze(model, "backbone")
    fl.freeze(model, "backbone.1")
    fl.freeze(model.backbone, "1")


WAYS = {
    "by freeze": _by_freeze,
    "by flag": _by_flag,
    "by flag, then FLAGGED": _by_flag_then_flagged,
    "by three parts": _twice,
}


@pytest.mark.parametrize("freeze", WAYS.values(), ids=WAYS)
def test_whoever_froze_it(freeze: object) -> None:
    model = mlp()
    freeze(model)
    thawed = fl.unfreeze(model, "backbone")
    assert [id(p) for p in thawed] == [id(p) for p in model.backbone.parameters()]
    assert all(flags(model).values())
    assert fl.parts(model) == []
    assert train(model) == all_that_trains()


@pytest.mark.parametrize("freeze", WAYS.values(), ids=WAYS)
def test_a_block_of_it(freeze: object) -> None:
    """Gradual unfreezing: the last block trains, what is before it stays held."""
    model = mlp()
    freeze(model)
    fl.unfreeze(model, ["backbone.3", "backbone.4"])
    moved = train(model)
    assert {n for n in contents(model) if n.startswith(("backbone.3", "backbone.4"))} <= moved
    below = {n for n in contents(model) if n.startswith(("backbone.0", "backbone.1"))}
    # By flag alone the statistics of the block that stays frozen were never held.
    drifting = {f"backbone.1.{n}" for n, _ in model.backbone[1].named_buffers()}
    assert moved & below == (drifting if freeze is _by_flag else set())


def test_one_line_with_an_optimizer() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-3)
    optimizer.add_param_group({"params": fl.unfreeze(model, "backbone.4"), "lr": 1e-4})
    moved = train(model, optimizer)
    assert {n for n in moved if not n.startswith("head")} == {
        f"backbone.4.{n}" for n in contents(model.backbone[4])
    }
    assert part.ok


def test_a_single_parameter() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    thawed = fl.unfreeze(model, "backbone.1.bias")
    assert [p is model.backbone[1].bias for p in thawed] == [True]
    moved = train(model)
    assert "backbone.1.bias" in moved
    # The norm itself stays held: its statistics are members still.
    assert not {n for n in moved if "running" in n}
    assert "backbone.1.bias" not in part.tensors
    assert part.ok


# --- parts shrink --------------------------------------------------------------------------------


def test_a_part_forgets_what_was_thawed() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    fl.unfreeze(model, "backbone.4")
    assert set(part.tensors) == {
        f"backbone.{i}.{n}" for i in (0, 1, 3) for n in contents(model.backbone[i])
    }
    assert "backbone.4" not in part.modules
    train(model)
    assert part.changes() == []
    part.undo()
    assert all(flags(model).values())


def test_undo_after_unfreeze_restores_what_is_left() -> None:
    model = mlp()
    model.backbone[3].bias.requires_grad_(False)
    before = flags(model)
    part = fl.freeze(model)
    fl.unfreeze(model, "head")
    part.undo()
    assert flags(model) == before
    assert all(type(m).__module__.startswith("torch.nn") for m in model.modules())
    assert not any("_frostline" in key for m in model.modules() for key in vars(m))


def test_unfreeze_of_all_in_pieces_holds_nothing_any_more() -> None:
    model = mlp()
    fl.freeze(model)
    fl.unfreeze(model, "backbone")
    fl.unfreeze(model, "head")
    assert all(flags(model).values())
    assert not any(part.tensors for part in fl.parts(model))
    assert train(model) == all_that_trains()


def test_freeze_again_what_was_thawed() -> None:
    model = mlp()
    first = fl.freeze(model, "backbone")
    fl.unfreeze(model, "backbone.4")
    second = fl.freeze(model, "backbone.4")
    assert not any(flags(model.backbone).values())
    assert train(model) == {"head.weight", "head.bias"}
    assert first.ok
    assert second.ok
    first.undo()
    assert flags(model.backbone) == {
        **dict.fromkeys(flags(model.backbone), True),
        "4.weight": False,
        "4.bias": False,
    }


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False, None], ids=["train()", "eval()", "nothing"])
@pytest.mark.parametrize("was", [True, False], ids=["was training", "was evaluating"])
def test_the_last_mode_that_was_asked_for(was: bool, asked: bool | None) -> None:
    model = mlp().train(was)
    fl.freeze(model, "backbone")
    if asked is not None:
        model.train(asked)
    fl.unfreeze(model, "backbone")
    expected = was if asked is None else asked
    assert {m.training for m in model.modules()} == {expected}


def test_parents_are_freed() -> None:
    """A module with anything trainable below it is never held in eval."""
    entry = ZOO["hf_vit"]
    model = entry.build()
    fl.freeze(model)
    model.train()
    fl.unfreeze(model, "classifier")
    for name, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters()):
            assert module.training, name
    assert not model.get_submodule("vit.embeddings.dropout").training


def test_other_models_are_left_alone() -> None:
    model, other = mlp(), mlp()
    part = fl.freeze(other, "backbone")
    fl.freeze(model, "backbone")
    before = everything(other)
    fl.unfreeze(model)
    assert everything(other) == before
    assert part.ok


# --- nothing, tied, wrapped ----------------------------------------------------------------------


def test_nothing_frozen_there() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    before = everything(model)
    with pytest.warns(FrostlineWarning, match=r'nothing in "head" of Sequential was frozen'):
        assert fl.unfreeze(model, "head") == []
    assert everything(model) == before
    assert part.ok


def test_a_held_module_without_parameters_is_no_warning() -> None:
    model = ZOO["hf_vit"].build()
    fl.freeze(model, "vit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fl.unfreeze(model, "vit.embeddings.dropout") == []
    model.train()
    assert model.get_submodule("vit.embeddings.dropout").training


def test_tied_tensors_come_once_and_together() -> None:
    model = ZOO["gpt2"].build()
    part = fl.freeze(model)
    with pytest.raises(SelectionError, match=r"lm_head\.weight are one tied tensor"):
        fl.unfreeze(model, "transformer.wte")
    thawed = fl.unfreeze(model, ["transformer.wte", "lm_head"])
    assert len(thawed) == 1
    assert thawed[0] is model.lm_head.weight
    assert not {"lm_head.weight", "transformer.wte.weight"} & set(part.tensors)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_through_a_wrapper(wrap: object) -> None:
    model = mlp()
    wrapped = wrap(model)
    part = fl.freeze(wrapped, "backbone")
    thawed = fl.unfreeze(wrapped, "backbone.0")
    assert [id(p) for p in thawed] == [id(p) for p in model.backbone[0].parameters()]
    assert "backbone.0.weight" not in part.tensors


def test_unfreeze_of_a_submodule_object() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    thawed = fl.unfreeze(model.backbone, "4")
    assert len(thawed) == 2
    assert "backbone.4.weight" not in part.tensors
    moved = train(model)
    assert "backbone.4.running_mean" in moved
    assert part.ok


def test_integers_stay_what_they_are() -> None:
    """Quantised parameters cannot require gradients: they are passed over, and said nothing of."""
    model = mlp()
    model.backbone[0].register_parameter(
        "codes", nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    )
    fl.freeze(model, "backbone")
    thawed = fl.unfreeze(model, "backbone")
    assert all(p.is_floating_point() for p in thawed)
    assert len(thawed) == len(list(model.backbone.parameters())) - 1


def test_stale_gradients_do_not_come_back() -> None:
    """What was set aside at the freeze belongs to weights of then: thawed ones start afresh."""
    model = mlp()
    ZOO["mlp_bn1d"].loss(model, ZOO["mlp_bn1d"].batch()).backward()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    optimizer.step()
    part = fl.freeze(model, "backbone", optimizer=optimizer)
    fl.unfreeze(model, "backbone.0")
    assert model.backbone[0].weight.grad is None
    assert model.backbone[0].weight not in optimizer.state
    part.undo()
    assert model.backbone[0].weight.grad is None
    assert model.backbone[3].weight.grad is not None
    assert model.backbone[3].weight in optimizer.state
