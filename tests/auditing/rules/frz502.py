"""Cases of FRZ502, one-value-per-channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import live, seeded


def _pooled() -> nn.Sequential:
    with seeded(0):
        model = live(
            nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4),
                nn.Flatten(), nn.Linear(4, 2),
            )
        )  # fmt: skip
    model[0].requires_grad_(False)
    return model


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def bad_one_image_behind_a_pooling() -> Case:
    return Case(_pooled(), batch=_images(1), codes=frozenset({"FRZ502"}))


def bad_frozen_norm() -> Case:
    model = _pooled()
    model[3].requires_grad_(False)
    return Case(model, batch=_images(1), codes=frozenset({"FRZ101", "FRZ502"}))


def bad_after_train() -> Case:
    return Case(_pooled().eval(), batch=_images(1), codes=frozenset({"FRZ502"}))


def good_two_images() -> Case:
    return Case(_pooled(), batch=_images(2))


def good_held() -> Case:
    model = _pooled()
    fl.freeze(model, "3", params=False)
    return Case(model, batch=_images(1))


def good_one_image_with_positions() -> Case:
    model = _pooled()
    model[1] = nn.AdaptiveAvgPool2d(2)
    model[5] = nn.Linear(16, 2)
    return Case(model, batch=_images(1))
