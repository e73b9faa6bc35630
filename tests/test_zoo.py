from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from frostline.selection import select
from tests.zoo import BREADTH, ZOO, fresh, live, seeded

MODELS = {**ZOO, **BREADTH}
every_model = pytest.mark.parametrize("name", MODELS)


def signs_of_a_fresh_model(model: nn.Module) -> list[str]:
    """The names of tensors that look as if nothing ever happened to them."""
    fresh = []
    for name, buffer in model.named_buffers():
        leaf = name.rpartition(".")[2]
        if leaf == "num_batches_tracked" and buffer <= 2:
            fresh.append(name)
        if leaf == "running_mean" and (buffer == 0).any():
            fresh.append(name)
        if leaf == "running_var" and (buffer == 1).any():
            fresh.append(name)
    fresh += [
        name
        for name, parameter in model.named_parameters()
        if parameter.numel() > 1 and parameter.min() == parameter.max()
    ]
    return fresh


def loss_of(name: str, model: nn.Module) -> torch.Tensor:
    with torch.no_grad(), seeded(5):
        return MODELS[name].loss(model, MODELS[name].batch())


def scales(module: nn.Module) -> list[nn.Parameter]:
    """What a norm, or a convolution in place of one, multiplies its channels with."""
    # By its name: libraries have norms of their own, which no base class of torch's unites.
    name = "weight" if "Norm" in type(module).__name__ else "gain"
    return [p for key, p in module.named_parameters(recurse=False) if key == name]


@every_model
def test_no_tensor_is_as_initialised(name: str) -> None:
    model = fresh(MODELS[name])
    assert signs_of_a_fresh_model(model) == []
    for scale in itertools.chain(*map(scales, model.modules())):
        assert scale.min() < -0.3
        assert scale.max() > 0.3
        assert scale.abs().min() > 0.1


def test_a_fresh_model_is_recognised() -> None:
    assert {"trunk.0.1.running_mean", "trunk.0.1.running_var", "trunk.0.1.num_batches_tracked"} <= {
        *signs_of_a_fresh_model(ZOO["two_branches"].make())
    }


@every_model
def test_training_changed_backbone_and_head(name: str) -> None:
    entry = MODELS[name]
    untrained = dict(entry.build(steps=0).named_parameters())
    moved = [
        key
        for key, parameter in fresh(entry).named_parameters()
        if not torch.equal(parameter, untrained[key])
    ]
    backbone = {tensor.name for tensor in select(entry.make(), entry.backbone).tensors}
    assert backbone & set(moved)
    assert any(key.startswith(entry.head + ".") for key in moved)


@every_model
def test_training_mode_gives_another_loss(name: str) -> None:
    model = fresh(MODELS[name])
    in_training = loss_of(name, model)
    in_eval = loss_of(name, model.eval())
    assert torch.isfinite(in_eval)
    assert not torch.equal(in_training, in_eval)
    assert torch.equal(in_eval, loss_of(name, model))


@every_model
def test_a_build_has_the_same_bits_and_leaves_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, second = fresh(MODELS[name]), MODELS[name].build()
    assert torch.equal(torch.get_rng_state(), before)
    for (key, one), other in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), key


def test_another_seed_gives_another_life() -> None:
    one, other = (live(nn.BatchNorm2d(4), seed) for seed in (1, 2))
    assert not torch.equal(one.running_mean, other.running_mean)
    assert not torch.equal(one.weight, other.weight)
