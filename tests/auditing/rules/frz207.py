"""Cases of FRZ207, trainable-param-without-gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, seeded

_ONLY = frozenset({"FRZ207"})


class _Net(nn.Module):
    """A frozen trunk in the middle, by one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        with seeded(0):
            self.stem, self.trunk, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.way = way
        self.trunk.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.way == "no_grad":
            with torch.no_grad():
                return self.head(self.trunk(x))
        if self.way == "unused":
            return self.trunk(x)
        x = self.trunk(x.detach() if self.way == "detach" else x)
        return self.head(x * 0 if self.way == "zero" else x)


def _batch() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def bad_no_grad_around_the_trunk_and_head() -> Case:
    """The loss needs no gradient at all."""
    return Case(_Net("no_grad"), batch=_batch(), codes=_ONLY)


def bad_detached_before_the_trunk() -> Case:
    model = _Net("detach")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    return Case(model, optimizer=optimizer, batch=_batch(), codes=_ONLY)


def bad_module_that_is_not_used() -> Case:
    return Case(_Net("unused"), batch=_batch(), codes=_ONLY)


def bad_second_branch_without_a_loss() -> Case:
    entry = ZOO["two_branches"]
    model = entry.build()
    fl.freeze(model, "trunk")
    return Case(
        model,
        batch=entry.batch(),
        compute_loss=lambda model, batch: model(batch[0])[0].square().mean(),
        codes=_ONLY,
    )


def good_requires_grad_in_the_middle() -> Case:
    return Case(_Net("plain"), batch=_batch())


def good_gradient_of_zeros() -> Case:
    """A gradient came: what it is is no matter of wiring."""
    return Case(_Net("zero"), batch=_batch())


def good_cut_where_all_before_is_frozen() -> Case:
    model = _Net("detach")
    model.stem.requires_grad_(False)
    return Case(model, batch=_batch())


class _Skipping(nn.Module):
    """Layers that are left out at random, as LayerDrop does."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.2:
                x = x + layer(x)
        return x


def good_layers_left_out_at_random() -> Case:
    torch.manual_seed(1)
    return Case(_Skipping(), batch=_batch())


def good_without_a_batch() -> Case:
    return Case(_Net("detach"))
