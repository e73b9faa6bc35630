"""Cases of FRZ102, eval-undone-by-train."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ102"})


class Remembering(nn.Sequential):
    """Leaves its first child in eval mode, as mmdetection's backbones with `norm_eval` do."""

    def train(self, mode: bool = True) -> Remembering:
        super().train(mode)
        self[0].eval()
        return self


class Forgetting(nn.Sequential):
    """Means to, and goes to the wrong child."""

    def train(self, mode: bool = True) -> Forgetting:
        super().train(mode)
        self[1].eval()
        return self


def _net(kind: type[nn.Sequential] = nn.Sequential) -> nn.Module:
    model = live(kind(nn.BatchNorm1d(2), nn.Linear(2, 1)))
    model[0].requires_grad_(False).eval()
    return model


def bad_eval_by_hand() -> Case:
    return Case(_net(), codes=_ONLY)


def bad_whole_model_in_eval_as_from_pretrained_leaves_it() -> Case:
    model = ZOO["resnet18"].build().eval()
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    return Case(model, codes=_ONLY)


def bad_train_of_its_own_that_misses() -> Case:
    return Case(_net(Forgetting), codes=_ONLY)


def bad_power_iteration() -> Case:
    model = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 1))
    model[0].requires_grad_(False).eval()
    return Case(model, codes=_ONLY)


def good_train_of_its_own_that_holds() -> Case:
    return Case(_net(Remembering))


def good_held() -> Case:
    model = _net()
    fl.freeze(model, "0")
    return Case(model)


def good_nothing_in_it_writes() -> Case:
    model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))
    model[0].requires_grad_(False).eval()
    return Case(model)
