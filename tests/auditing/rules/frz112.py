"""Cases of FRZ112, recurrent-backward-in-eval."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO

_ONLY = frozenset({"FRZ112"})


class Tagger(nn.Module):
    """A frozen recurrent layer between two that train."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.rnn = rnn
        self.head = nn.Linear(4, 1)
        self.rnn.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


class Steady(Tagger):
    """Its `train` leaves the recurrent layer in eval mode."""

    def train(self, mode: bool = True) -> Steady:
        super().train(mode)
        self.rnn.eval()
        return self


def bad_lstm_in_the_middle() -> Case:
    model = Tagger(nn.LSTM(4, 4, batch_first=True))
    model.rnn.eval()
    return Case(model, batch=torch.randn(2, 3, 3), codes=_ONLY)


def bad_gru_kept_in_eval() -> Case:
    return Case(Steady(nn.GRU(4, 4)).eval(), codes=_ONLY)


def bad_rnn_behind_an_embedding() -> Case:
    model = nn.ModuleDict({"words": nn.Embedding(5, 4), "rnn": nn.RNN(4, 4)})
    model["rnn"].requires_grad_(False).eval()
    return Case(model, codes=_ONLY)


def good_held() -> Case:
    model = Tagger(nn.LSTM(4, 4, batch_first=True))
    fl.freeze(model, "rnn")
    return Case(model.train(), batch=torch.randn(2, 3, 3))


def good_in_training_mode() -> Case:
    return Case(Tagger(nn.LSTM(4, 4, batch_first=True)), batch=torch.randn(2, 3, 3))


def good_all_in_eval_between_epochs() -> Case:
    return Case(Tagger(nn.LSTM(4, 4, batch_first=True)).eval())


def good_nothing_trains_before_it() -> Case:
    model = ZOO["lstm"].build()
    fl.freeze(model, "rnn", mode="follow")
    model.rnn.eval()
    return Case(model)


def good_frozen_before_it() -> Case:
    model = Tagger(nn.LSTM(4, 4, batch_first=True))
    model.embed.requires_grad_(False)
    model.rnn.eval()
    return Case(model)
