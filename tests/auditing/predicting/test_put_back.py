"""A prediction leaves nothing behind, also where it fails, and computes nothing real."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import _len_torch_dispatch_stack

import frostline as fl
from frostline._names import named_tensors
from frostline.auditing.predicting import NotPredictable, predict
from tests.auditing.predicting.truth import adamw, sgd
from tests.auditing.predicting.writers import WRITERS, batch, built
from tests.zoo import ZOO, fresh


def squared(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().sum()


def everything(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """All that could be told apart afterwards, by identity where things are objects."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name} dict"] = {k: id(v) for k, v in vars(module).items() if k != "training"}
        found[f"{name} mode"] = module.training
        found[f"{name} hooks"] = [len(module._forward_hooks), len(module._forward_pre_hooks)]
    for entry in named_tensors(model):
        t = entry.tensor
        found[entry.name] = (id(t), t._version, t.requires_grad, id(t.grad), t.data_ptr())
        found[f"{entry.name} bytes"] = t.detach().clone()
        found[f"{entry.name} grad"] = None if t.grad is None else t.grad.clone()
        found[f"{entry.name} hooks"] = (t._backward_hooks, t._post_accumulate_grad_hooks)
    found["groups"] = deepcopy([{**g, "params": 0} for g in optimizer.param_groups])
    found["optimizer"] = {k: id(v) for k, v in vars(optimizer).items()}
    found["state"] = [(id(p), {k: id(v) for k, v in s.items()}) for p, s in optimizer.state.items()]
    found["kept"] = [deepcopy(list(state.values())) for state in optimizer.state.values()]
    found["rng"] = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    found["global"] = [len(modules._global_forward_hooks), len(modules._global_forward_pre_hooks)]
    found["steps"] = [
        len(optimizers._global_optimizer_pre_hooks), len(optimizers._global_optimizer_post_hooks)
    ]  # fmt: skip
    found["modes"] = (_len_torch_dispatch_stack(), torch.is_grad_enabled())
    return found


def assert_same(a: Any, b: Any, at: str = "") -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b), at
    elif isinstance(a, dict):
        assert list(a) == list(b), at
        for key in a:
            assert_same(a[key], b[key], f"{at}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}/{i}")
    else:
        assert a == b, at


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_left(name: str) -> None:
    model = built(name)
    optimizer = adamw(model)
    squared(model, batch()).backward()
    optimizer.step()
    model.eval()
    before = everything(model, optimizer)
    predict(model, optimizer, batch().to("meta"), squared, train=True)
    assert_same(everything(model, optimizer), before)


def test_a_new_optimizer_stays_new() -> None:
    model = built("batch norm")
    optimizer = adamw(model)
    before = everything(model, optimizer)
    predict(model, optimizer, batch().to("meta"), squared, train=True)
    assert_same(everything(model, optimizer), before)
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


class Breaking(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.linear, self.norm, self.where = nn.Linear(4, 4), nn.BatchNorm1d(4), where
        self.register_buffer("average", torch.randn(4))

    def train(self, mode: bool = True) -> Breaking:
        super().train(mode)
        self.asked = self.where == "train"
        if self.asked and mode:
            raise RuntimeError("train")
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.average = self.average * 0.5
        x = self.norm(self.linear(x))
        if self.where == "value" and x.sum() > 0:
            x = x + 1
        if self.where == "numpy":
            self.linear.weight.detach().numpy()
        if self.where == "backward":
            x.register_hook(lambda gradient: gradient.sum().item())
        return x


@pytest.mark.parametrize("where", ["train", "value", "numpy", "backward"])
def test_nothing_is_left_by_a_step_that_cannot_be_predicted(where: str) -> None:
    model = Breaking("no").eval()
    model.where = where
    optimizer = adamw(model)
    before = everything(model, optimizer)
    with pytest.raises(NotPredictable):
        predict(model, optimizer, batch().to("meta"), squared, train=True)
    assert_same(everything(model, optimizer), before)


def test_the_batch_is_not_written() -> None:
    class Shifting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    given = batch()
    version, copy = given._version, given.clone()
    predict(Shifting(), None, given, None, train=True)
    assert (given._version, torch.equal(given, copy)) == (version, True)


def test_no_real_memory_is_taken() -> None:
    """64 GiB of activations would not fit."""
    model = nn.Sequential(nn.Linear(4, 1 << 16, bias=False), nn.ReLU())
    step = predict(model, sgd(model), torch.zeros(1 << 18, 4, device="meta"), None, train=True)
    assert step.changed == {id(model[0].weight)}


def test_a_guard_does_not_count_the_step_and_hooks_of_the_optimizer_do_not_run() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    part = fl.freeze(model, "0")
    optimizer = sgd(model)
    ran: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: ran.append(1))
    with fl.guard(part) as guard:
        step = predict(model, optimizer, batch().to("meta"), squared, train=True)
        assert ran == []
        assert id(model[1].weight) in step.changed
        squared(model, batch()).backward()
        optimizer.step()
    assert ran == [1]
    assert guard.report.steps == 1


def test_a_held_part_stays_and_counts_no_call() -> None:
    entry = ZOO["mlp_bn1d"]
    model = fresh(entry).train()
    part = fl.freeze(model, entry.backbone)
    before = str(part)
    step = predict(model, sgd(model), entry.batch(), entry.loss, train=True)
    names = {id(e.tensor): e.name for e in named_tensors(model)}
    assert {names[key].partition(".")[0] for key in step.changed} == {"head"}
    assert str(part) == before


def test_a_gradient_of_a_held_parameter_is_cleared_in_the_step_only() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, "0")
    model[0].weight.grad = gradient = torch.ones(4, 4)
    step = predict(model, sgd(model), batch(), squared, train=False)
    assert id(model[0].weight) not in {*step.changed, *step.undecided}
    assert model[0].weight.grad is gradient
