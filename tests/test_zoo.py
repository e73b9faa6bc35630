from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.selection import select
from tests.zoo import ZOO, live, seeded

every_model = pytest.mark.parametrize("name", ZOO)


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
        return ZOO[name].loss(model, ZOO[name].batch())


@every_model
def test_no_tensor_is_as_initialised(name: str) -> None:
    model = ZOO[name].build()
    assert signs_of_a_fresh_model(model) == []
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            assert module.weight.min() < -0.3
            assert module.weight.max() > 0.3
            assert module.weight.abs().min() > 0.1


def test_a_fresh_model_is_recognised() -> None:
    assert {"trunk.0.1.running_mean", "trunk.0.1.running_var", "trunk.0.1.num_batches_tracked"} <= {
        *signs_of_a_fresh_model(ZOO["two_branches"].make())
    }


@every_model
def test_training_changed_backbone_and_head(name: str) -> None:
    entry = ZOO[name]
    untrained = dict(entry.build(steps=0).named_parameters())
    moved = [
        key
        for key, parameter in entry.build().named_parameters()
        if not torch.equal(parameter, untrained[key])
    ]
    backbone = {tensor.name for tensor in select(entry.make(), entry.backbone).tensors}
    assert backbone & set(moved)
    assert any(key.startswith(entry.head + ".") for key in moved)


@every_model
def test_training_mode_gives_another_loss(name: str) -> None:
    model = ZOO[name].build()
    in_training = loss_of(name, model)
    in_eval = loss_of(name, model.eval())
    assert torch.isfinite(in_eval)
    assert not torch.equal(in_training, in_eval)
    assert torch.equal(in_eval, loss_of(name, model))


@every_model
def test_a_build_has_the_same_bits_and_leaves_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, second = ZOO[name].build(), ZOO[name].build()
    assert torch.equal(torch.get_rng_state(), before)
    for (key, one), other in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), key


def test_another_seed_gives_another_life() -> None:
    one, other = (live(nn.BatchNorm2d(4), seed) for seed in (1, 2))
    assert not torch.equal(one.running_mean, other.running_mean)
    assert not torch.equal(one.weight, other.weight)
