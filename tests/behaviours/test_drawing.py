"""Whose code draws random numbers by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import dropout

from frostline.behaviours.drawing import draws


class Base(nn.Module):
    def __init__(self, **chances: float) -> None:
        super().__init__()
        vars(self).update(chances)
        self.child = nn.Dropout(0.3)


class ByFunction(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_prob, self.training)


class ByName(Base):
    def forward(self, x: Tensor) -> Tensor:
        return dropout(x)


class Reparametrised(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class InPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(x.shape).bernoulli_(0.5)


class ByKeyword(Base):
    def forward(self, x: Tensor) -> Tensor:
        attend = F.scaled_dot_product_attention
        return attend(x, x, x, dropout_p=self.attention_dropout)


class InHelper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self._mask(x)

    def _mask(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1) > 0.5)


class CallsChild(Base):
    """A near miss: what it calls `dropout` is a module, which is looked at by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x)


class DrawsAtBirth(Base):
    """A near miss: no forward reaches it."""

    def reset_parameters(self) -> None:
        self.table = torch.randn(3)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Configured(Base):
    """The chance stands in a config, as in transformers."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.config = type("Config", (), {})()
        self.config.layerdrop = chance

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand([]) < self.config.layerdrop else -x


class Masked(Base):
    """SpecAugment: a chance, and a switch."""

    def __init__(self, chance: float, on: bool) -> None:
        super().__init__()
        self.config = type("Config", (), {})()
        self.config.mask_time_prob = chance
        self.config.apply_spec_augment = on

    def forward(self, x: Tensor) -> Tensor:
        if not self.config.apply_spec_augment or not self.training:
            return x
        return x * (torch.rand(len(x)) > self.config.mask_time_prob)


@pytest.mark.parametrize(
    "module",
    [
        Masked(0.1, True),
        ByFunction(drop_prob=0.1),
        ByFunction(),
        ByName(),
        Reparametrised(),
        InPlace(),
        ByKeyword(attention_dropout=0.1),
        InHelper(),
        Configured(0.1),
    ],
    ids=lambda module: type(module).__name__,
)
def test_it_draws(module: nn.Module) -> None:
    line = draws(module)
    assert line is not None
    assert line.startswith("test_drawing.py:")


@pytest.mark.parametrize(
    "module",
    [
        Masked(0.1, False),
        Masked(0.0, True),
        ByFunction(drop_prob=0.0),
        ByKeyword(attention_dropout=0.0),
        CallsChild(),
        DrawsAtBirth(),
        Configured(0.0),
        nn.Linear(2, 2),
        nn.Dropout(0.5),
    ],
    ids=lambda module: type(module).__name__,
)
def test_it_does_not(module: nn.Module) -> None:
    assert draws(module) is None


def test_the_line_is_the_one_that_draws() -> None:
    assert str(draws(Reparametrised())).endswith(": return x + torch.randn_like(x)")
