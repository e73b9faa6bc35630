"""The modes after train() and eval(), found without leaving a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.auditing.modes import after
from tests.everything import everything, forget_other_tests
from tests.zoo import ZOO, live

pytestmark = pytest.mark.usefixtures("small_heap")


class KeepsEval(nn.Sequential):
    def train(self, mode: bool = True) -> KeepsEval:
        super().train(mode)
        self[0].eval()
        return self


class Skips(nn.Sequential):
    def train(self, mode: bool = True) -> Skips:
        self.training = mode
        self[1].train(mode)
        return self


class Thaws(nn.Sequential):
    def train(self, mode: bool = True) -> Thaws:
        super().train(mode)
        with torch.no_grad():
            self[0].weight.add_(1.0)
        self[0].weight.requires_grad_(mode)
        self.asked = mode
        return self


class Raises(nn.Sequential):
    def train(self, mode: bool = True) -> Raises:
        super().train(mode)
        raise RuntimeError("train is not for you")


def net(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    return live(kind(nn.BatchNorm1d(2), nn.Linear(2, 1)))


def patched() -> nn.Sequential:
    model = net()
    model[0].train = lambda mode=True: model[0]  # type: ignore[method-assign]
    return model


def held() -> nn.Sequential:
    model = net()
    fl.freeze(model, "0")
    return model


MODELS = {
    "plain": net,
    "keeps eval": lambda: net(KeepsEval),
    "skips": lambda: net(Skips),
    "thaws": lambda: net(Thaws),
    "patched": patched,
    "held": held,
    "resnet": ZOO["resnet18"].build,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_as_if_it_were_called(name: str, before: bool, training: bool) -> None:
    model = MODELS[name]()
    model.train(before)
    found = after(model, training)
    model.train(training)
    assert found.of == {id(module): module.training for module in model.modules()}
    assert found.raised == ""


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_behind(name: str) -> None:
    forget_other_tests()
    model = MODELS[name]()
    before = everything(model)
    after(model, True)
    after(model, False)
    assert everything(model) == before


def test_a_train_that_raises_is_told_and_leaves_nothing() -> None:
    forget_other_tests()
    model = net(Raises)
    before = everything(model)
    found = after(model, False)
    assert everything(model) == before
    assert found.of == {id(module): True for module in model.modules()}
    assert found.raised == "model.train(False) raised RuntimeError: train is not for you"
    assert found.raised in fl.audit(model).notes
