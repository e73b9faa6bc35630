"""Cases of FRZ103, active-dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO

_ONLY = frozenset({"FRZ103"})


def _net(*modules: nn.Module) -> nn.Sequential:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), *modules), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return model


class Dropping(nn.Module):
    """Drops in training mode, by a function."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.dropout = chance

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Forgetful(Dropping):
    """Drops in every mode: `training` is True unless somebody says otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout)


class Attending(nn.Module):
    """Attention weights that are dropped within the fused kernel."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.dropout = chance

    def forward(self, x: Tensor) -> Tensor:
        chance = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=chance)


class Calling(nn.Module):
    """A near miss: `self.dropout` is a module, and it drops nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x) if self.training else x


def bad_dropout_by_flag() -> Case:
    return Case(_net(nn.Dropout(0.1)), codes=_ONLY)


def bad_in_eval_until_train() -> Case:
    return Case(_net(nn.Dropout(0.1)).eval(), codes=_ONLY)


def bad_a_function_that_drops() -> Case:
    return Case(_net(Dropping(0.1)), codes=_ONLY)


def bad_a_function_that_drops_in_every_mode() -> Case:
    model = _net(Forgetful(0.1))
    fl.freeze(model, "0")
    return Case(model, codes=_ONLY)


def bad_attention_within_the_kernel() -> Case:
    return Case(_net(Attending(0.1)), codes=_ONLY)


def bad_between_the_layers_of_an_lstm() -> Case:
    return Case(_net(nn.LSTM(4, 4, num_layers=2, dropout=0.1)), codes=_ONLY)


def bad_layers_and_times_of_speech() -> Case:
    model = ZOO["wav2vec2"].build()
    model.wav2vec2.requires_grad_(False)
    return Case(model, frozen="wav2vec2.encoder", codes=_ONLY)


def bad_pooling_at_random() -> Case:
    return Case(_net(nn.FractionalMaxPool2d(2, output_size=2)).eval(), codes=_ONLY)


def good_held() -> Case:
    model = _net(nn.Dropout(0.1), Dropping(0.1), Attending(0.1))
    fl.freeze(model, "0")
    return Case(model.train())


def good_dropout_that_is_wanted() -> Case:
    model = _net(nn.Dropout(0.1), Dropping(0.1))
    fl.freeze(model, "0", mode="follow")
    return Case(model)


def good_chances_of_zero() -> Case:
    return Case(
        _net(nn.Dropout(0.0), Dropping(0.0), Forgetful(0.0), Attending(0.0), Calling(),
             nn.LSTM(4, 4, dropout=0.0), nn.MultiheadAttention(4, 2, dropout=0.0))
    )  # fmt: skip


def good_dropout_in_the_head() -> Case:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 1)))
    model[0].requires_grad_(False)
    return Case(model, batch=torch.randn(4, 4))
