"""Optimizers with frozen parameters in their groups leave them alone, and keep their groups."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import frostline as fl
from frostline.errors import FreezeError
from tests.freezing.actions import OPTIMIZERS
from tests.freezing.kinds import KINDS, Net, build, step

KIND = "BatchNorm1d"


def net_and_batch() -> tuple[Net, Tensor]:
    return build(KIND), KINDS[KIND].inputs()


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# --- gradients ------------------------------------------------------------------------------


def test_freeze_clears_gradients_and_undo_brings_the_objects_back() -> None:
    net, x = net_and_batch()
    step(net, x)
    before = [p.grad for p in net.part.parameters()]
    part = fl.freeze(net, "part")
    assert [p.grad for p in net.part.parameters()] == [None] * len(before)
    assert all(p.grad is not None for p in net.head.parameters())
    part.undo()
    assert all(p.grad is g for p, g in zip(net.part.parameters(), before, strict=True))


def test_step_clears_gradients_written_by_hand_by_identity_not_by_flag() -> None:
    net, _ = net_and_batch()
    flagged = net.stem.weight.requires_grad_(False)
    fl.freeze(net, "part")
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = values(net.part)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert same(values(net.part), before)
    assert all(p.grad is None for p in net.part.parameters())
    # Not ours, so plain torch: the flag alone stops no optimizer.
    assert flagged.grad is not None


def test_requires_grad_switched_on_again_is_named_and_still_not_stepped() -> None:
    net, x = net_and_batch()
    part = fl.freeze(net, "part")
    before = values(net.part)
    net.part.requires_grad_(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step(net, x)
    assert any(p.grad is not None for p in net.part.parameters())
    optimizer.step()
    assert same(values(net.part), before)
    assert {c.kind for c in part.changes()} == {"requires_grad"}


def test_hook_goes_with_the_last_part() -> None:
    net, _ = net_and_batch()
    other, _ = net_and_batch()
    parts = [fl.freeze(net, "part"), fl.freeze(other, "part")]
    for part in parts:
        part.undo()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = values(net.part)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert not same(values(net.part), before)


def test_undo_of_one_part_leaves_the_hook_for_the_other() -> None:
    net, _ = net_and_batch()
    other, _ = net_and_batch()
    fl.freeze(net, "part")
    fl.freeze(other, "part").undo()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = values(net.part)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert same(values(net.part), before)


# --- trajectories ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trainable_rest_moves_as_if_the_frozen_part_were_not_in_the_optimizer(name: str) -> None:
    net, x = net_and_batch()
    alone = copy.deepcopy(net)
    fl.freeze(net, "part")
    fl.freeze(alone, "part")
    every = OPTIMIZERS[name](list(net.parameters()))
    only = OPTIMIZERS[name]([p for p in alone.parameters() if p.requires_grad])
    for _ in range(3):
        for model, optimizer in ((net, every), (alone, only)):
            optimizer.zero_grad()
            step(model, x, optimizer)
    assert same(values(net.stem), values(alone.stem))
    assert same(values(net.head), values(alone.head))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_stay(name: str) -> None:
    net, x = net_and_batch()
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    step(net, x, optimizer)
    layout = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    saved = optimizer.state_dict()
    fl.freeze(net, "part", optimizer=optimizer)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == layout
    optimizer.load_state_dict(saved)  # a checkpoint from before the freeze still fits
    step(net, x, optimizer)
    assert fl.parts(net)[0].ok


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_set_aside_by_freeze_comes_back(name: str) -> None:
    net, x = net_and_batch()
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    step(net, x, optimizer)
    before = {p: optimizer.state[p] for p in net.part.parameters()}
    assert any(before.values())
    part = fl.freeze(net, "part", optimizer=optimizer)
    assert not any(p in optimizer.state for p in net.part.parameters())
    step(net, x, optimizer)
    part.undo()
    assert all(optimizer.state[p] is state for p, state in before.items())


def test_unfreeze_gives_a_group_of_its_own() -> None:
    net, x = net_and_batch()
    part = fl.freeze(net, "part")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    optimizer.add_param_group({"params": fl.unfreeze(net, "part.0"), "lr": 0.01})
    before = values(net.part[0])
    step(net.train(), x, optimizer)
    assert not same(values(net.part[0]), before)
    assert part.ok


# --- refused --------------------------------------------------------------------------------


def test_lbfgs_over_frozen_parameters_is_refused_at_its_step() -> None:
    net, x = net_and_batch()
    part = fl.freeze(net, "part")
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1)
    before = values(net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    with pytest.raises(FreezeError, match=r"LBFGS .* 4 of them are frozen.*requires_grad"):
        optimizer.step(closure)
    assert same(values(net), before)
    assert part.ok


def test_lbfgs_is_refused_at_the_freeze() -> None:
    net, _ = net_and_batch()
    optimizer = torch.optim.LBFGS(net.parameters())
    with pytest.raises(FreezeError, match="LBFGS"):
        fl.freeze(net, "part", optimizer=optimizer)
    assert net.part[0].weight.requires_grad
    assert fl.parts(net) == []


def test_lbfgs_over_the_trainable_ones_works() -> None:
    net, x = net_and_batch()
    part = fl.freeze(net, "part")
    trainable = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(trainable, lr=0.1, max_iter=2)
    before = values(net.head)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not same(values(net.head), before)
    assert part.ok


def test_optimizer_left_with_nothing_is_refused() -> None:
    net, _ = net_and_batch()
    optimizer = torch.optim.SGD(net.part.parameters(), lr=0.1)
    with pytest.raises(FreezeError, match="nothing to train"):
        fl.freeze(net, "part", optimizer=optimizer)
    assert net.part[0].weight.requires_grad


def two_tensors(model: nn.Module) -> None:
    """Weights of a wrapper subclass, with gradients: torch moves these by `swap_tensors`."""
    for layer in model:
        both = TwoTensor(layer.weight.detach().clone(), layer.weight.detach().clone())
        layer.weight = nn.Parameter(both)
        layer.weight.grad = both.detach().clone()


@pytest.mark.parametrize("weights", ["of a wrapper subclass", "plain, swapped by request"])
def test_gradients_set_aside_do_not_keep_torch_from_moving_the_weights(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    if weights == "of a wrapper subclass":
        two_tensors(model)
    else:
        model(torch.ones(2, 3)).sum().backward()
        monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    weight, gradient = model[0].weight, model[0].weight.grad
    part = fl.freeze(model, "0", seal=weights != "of a wrapper subclass")
    model.double()
    assert model[0].weight is weight
    assert weight.grad is None
    part.undo()
    assert weight.requires_grad
    assert weight.grad.dtype is weight.dtype is torch.float64
    assert torch.equal(weight.grad.float(), gradient)


def test_what_was_set_aside_goes_with_the_model() -> None:
    model, x = net_and_batch()
    model(x).sum().backward()
    part = fl.freeze(model, "part")
    gradients = [weakref.ref(p) for p in model.parameters()]
    del model
    gc.collect()
    assert [p() for p in gradients] == [None] * len(gradients)
    part.undo()
