"""Cases of FRZ006, nothing-trainable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ006"})


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def bad_all_flags_off() -> Case:
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters())
    model.requires_grad_(False)
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_all_held() -> Case:
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters())
    fl.freeze(model)
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_by_a_loss_alone() -> Case:
    model = _net()
    model.requires_grad_(False)
    return Case(model, batch=torch.randn(3, 2), compute_loss=_loss, codes=_ONLY)


def good_loss_of_something_trainable() -> Case:
    return Case(_net(), batch=torch.randn(3, 2), compute_loss=_loss)


def good_one_bias_is_left() -> Case:
    model = _net()
    model.requires_grad_(False)
    model[1].bias.requires_grad_(True)
    return Case(model, optimizer=torch.optim.AdamW([model[1].bias]))


def good_nobody_trains() -> Case:
    model = _net()
    model.requires_grad_(False)
    return Case(model)


def good_teacher_beside_a_student() -> Case:
    teacher, student = _net(), _net()
    teacher.requires_grad_(False)
    return Case(teacher, optimizer=torch.optim.AdamW(student.parameters()))
