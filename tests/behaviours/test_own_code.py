"""What is read from the code of a class: what a forward reaches, what it writes, what it asks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.behaviours.own_code import running, written_by
from frostline.behaviours.unknown import question
from tests.guarding.causes import cause_models as models


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(self: nn.Module, *args: Any) -> Any:
        self.through = True
        return function(self, *args)

    return inner


class Written(nn.Module):
    """Every way to write, beside what only looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.born = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.assigned = x
        self.counted += 1
        self.table[self.key] = x[self.read]
        self.rows[0, self.start :] = self.values[self.order]
        self.moved.data.mul_(0.9)
        self.pair, other = x, x
        self._helper(x)
        with torch.no_grad():
            (lambda: self.inner.zero_())()
        return self.plain.mul(x) + self.child(x).add_(1) + other

    def _helper(self, x: Tensor) -> None:
        self.helped.copy_(x)

    def never_called(self) -> None:
        self.never.zero_()


class Base(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.by_base.add_(1)
        return x * self.training


class Extends(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.by_self.add_(1)
        return super().forward(x)


class Replaces(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.by_self.add_(1)
        return x


class Decorated(nn.Module):
    @wrapped
    def forward(self, x: Tensor) -> Tensor:
        self.inside.add_(1)
        return x if self.training else -x


class AsksInProperty(nn.Module):
    @property
    def scale(self) -> float:
        return 2.0 if self.training else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class AsksElsewhere(nn.Module):
    """A near miss: only what no forward reaches looks at the mode."""

    def train(self, mode: bool = True) -> AsksElsewhere:
        self.was = self.training
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x


class NamesIt(nn.Module):
    """A near miss: a keyword of that name is no question."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1, training=False)


def test_every_way_to_write_and_no_way_to_read() -> None:
    assert written_by(Written) == {
        "assigned", "counted", "table", "rows", "moved", "pair", "helped", "inner",
    }  # fmt: skip


def test_codebooks_as_people_write_them() -> None:
    assert written_by(models.Codebook) == {"codes", "sizes", "sums"}
    assert written_by(models.Queue) & set(models.Queue()._buffers) == {"queue", "pointer"}
    assert written_by(nn.Linear) == frozenset()


@pytest.mark.parametrize(
    ("cls", "written"),
    [
        (Extends, {"by_self", "by_base"}),
        (Replaces, {"by_self"}),
        (Decorated, {"inside", "through"}),
        (AsksElsewhere, set()),
    ],
)
def test_bases_and_decorators_count_as_far_as_they_run(
    cls: type[nn.Module], written: set[str]
) -> None:
    assert written_by(cls) == written


@pytest.mark.parametrize(
    ("cls", "asks"),
    [
        (Base, True),
        (Extends, True),
        (Replaces, False),
        (Decorated, True),
        (AsksInProperty, True),
        (AsksElsewhere, False),
        (NamesIt, False),
        (nn.Linear, False),
        (nn.BatchNorm1d, True),
    ],
)
def test_a_question_is_found_where_a_forward_reaches_it(cls: type[nn.Module], asks: bool) -> None:
    assert (question(cls) is not None) is asks
    if asks and cls.__module__ == __name__:
        assert str(question(cls)).startswith("test_own_code.py:")


def test_a_class_without_a_forward_has_no_code() -> None:
    class Nothing(nn.Module):
        pass

    assert running(Nothing) == []
