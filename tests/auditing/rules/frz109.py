"""Cases of FRZ109, stuck-in-training."""

from __future__ import annotations

from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import live

_ONLY = frozenset({"FRZ109"})


class Segmenter(nn.Module):
    """Its `train` passes the frozen encoder by, for both modes."""

    def __init__(self, *encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), *encoder)
        self.head = nn.Linear(4, 1)
        self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Segmenter:
        self.training = mode
        self.head.train(mode)
        return self


class HalfFrozen(Segmenter):
    """The norms of the encoder are put into eval mode by hand, its dropout is forgotten."""

    def train(self, mode: bool = True) -> HalfFrozen:
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class NormEval(nn.Module):
    """Right, as mmdetection writes it: everything follows, and then the norms go to eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)
        self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> NormEval:
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


def bad_dropout_of_a_skipped_encoder() -> Case:
    return Case(Segmenter(nn.Dropout(0.1)), codes=_ONLY)


def bad_only_the_norms_are_in_eval() -> Case:
    model = live(HalfFrozen(nn.BatchNorm1d(4), nn.Dropout(0.1)))
    return Case(model.train(), codes=_ONLY)


def bad_a_lambda_on_the_object() -> Case:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    model[0].train = lambda mode=True: model[0]
    return Case(model, codes=_ONLY | {"FRZ110"})


def good_held() -> Case:
    model = Segmenter(nn.Dropout(0.1))
    fl.freeze(model, "encoder")
    return Case(model)


def good_norms_in_eval_after_each_train() -> Case:
    return Case(live(NormEval()).train())


def good_skipped_in_eval_mode() -> Case:
    model = Segmenter(nn.Dropout(0.1))
    model.encoder.eval()
    return Case(model)


def good_the_mode_makes_no_difference() -> Case:
    return Case(Segmenter(nn.ReLU(), nn.LayerNorm(4), nn.Dropout(0.0)))


def good_follows() -> Case:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), nn.Linear(4, 1))
    fl.freeze(model, "0", mode="follow")
    return Case(model)
