"""Gradients, optimizers and schedules: F24 to F36."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case
from tests.auditing.faults.fault import (
    adamw,
    case,
    fault,
    flags_off,
    lived,
    running,
    sgd,
    trainable,
)
from tests.auditing.faults.nets import classes, detector, images, mlp, squared, vectors
from tests.zoo import ZOO, live, seeded


@fault(24, "axolotl's ranges in unfrozen_parameters")
def rows_frozen_by_a_gradient_hook() -> Case:
    entry = ZOO["bert"]
    model = lived(entry)
    flags_off(model)
    tokens = model.bert.embeddings.word_embeddings.weight
    tokens.requires_grad = True

    def freeze_rows(gradient: Tensor) -> None:
        for start, end in ((0, len(tokens) - 2),):
            gradient[start:end].zero_()

    tokens.register_hook(freeze_rows)
    return running(entry, model, "206", optimizer=adamw([tokens]))


def _train_once(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    classes(model, batch).backward()
    optimizer.step()


@fault(25, "discuss.pytorch.org 153740")
def frozen_while_gradients_were_there() -> Case:
    model = mlp()
    optimizer = sgd(model.parameters())
    _train_once(model, optimizer, vectors())
    flags_off(model.middle)
    return case(model, vectors(), classes, "005", optimizer=optimizer)


@fault(25, "zero_grad(set_to_none=False), with momentum")
def gradients_of_zero_and_momentum() -> Case:
    model = mlp()
    optimizer = sgd(model.parameters())
    _train_once(model, optimizer, vectors())
    flags_off(model.middle)
    optimizer.zero_grad(set_to_none=False)
    return case(model, vectors(), classes, "005", optimizer=optimizer)


@fault(26, "discuss.pytorch.org 58156")
def frozen_entries_of_an_optimizer_from_before() -> Case:
    model = mlp()
    optimizer = adamw(model.parameters())
    _train_once(model, optimizer, vectors())
    optimizer.zero_grad()
    flags_off(model.middle)
    return case(model, vectors(), classes, "201", optimizer=optimizer)


@fault(26, "fast-reid#178")
def decay_goes_on_with_gradients_of_zero() -> Case:
    model = mlp()
    optimizer = adamw(model.parameters())
    _train_once(model, optimizer, vectors())
    optimizer.zero_grad(set_to_none=False)
    flags_off(model.middle)
    return case(model, vectors(), classes, "005", optimizer=optimizer)


@fault(27, "pix2pixHD#249")
def left_out_of_the_optimizer_only() -> Case:
    model = mlp()
    return case(model, vectors(), classes, "202", optimizer=sgd(model.head.parameters()))


@fault(27, "discuss.pytorch.org 58156")
def called_frozen_because_no_optimizer_has_it() -> Case:
    model = detector()
    optimizer = sgd([*model.neck.parameters(), *model.head.parameters()])
    return case(model, images(), squared, "003", "101", optimizer=optimizer, frozen="backbone")


@fault(28, "clip_grad_norm_ over all parameters")
def stale_gradients_in_the_norm_that_clips() -> Case:
    model = mlp()
    classes(model, vectors()).backward()
    flags_off(model.middle)
    return case(model, vectors(), classes, "005", optimizer=sgd(trainable(model)))


@fault(29, "luxonis-train#358")
def thawed_and_in_no_optimizer() -> Case:
    model = mlp()
    flags_off(model.middle)
    optimizer = adamw(trainable(model))
    for parameter in model.middle.parameters():
        parameter.requires_grad = True
    return case(model, vectors(), classes, "202", optimizer=optimizer)


def _not_in(optimizer: torch.optim.Optimizer, wanted: list[nn.Parameter]) -> list[nn.Parameter]:
    """As a filter that compares by value does it."""
    there = [p for group in optimizer.param_groups for p in group["params"]]
    return [p for p in wanted if not any(torch.equal(p, q) for q in there)]


@fault(31, "Lightning's filter_on_optimizer")
def left_out_because_another_has_equal_values() -> Case:
    with seeded(7):
        layers = [
            live(nn.Linear(8, 8)),
            nn.LayerNorm(8),
            nn.ReLU(),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        ]
    model = nn.Sequential(*layers).train()
    optimizer = sgd([*model[0].parameters(), *model[1].parameters()])
    more = _not_in(optimizer, [*model[3].parameters(), *model[4].parameters()])
    optimizer.add_param_group({"params": more})
    return case(model, vectors(), classes, "202", optimizer=optimizer)


@fault(32, "yolov5#1213")
def switched_on_again_by_the_trainer() -> Case:
    model = detector()
    flags_off(model.backbone)
    for parameter in model.parameters():  # what its own list does not name, the trainer trains
        parameter.requires_grad = True
    optimizer = sgd(model.parameters())
    return case(model, images(), squared, "003", "101", optimizer=optimizer, frozen="backbone")


@fault(32, "PL#5574")
def switched_on_again_in_a_held_part() -> Case:
    model = detector()
    fl.freeze(model, "backbone")
    for parameter in model.parameters():
        parameter.requires_grad = True
    optimizer = sgd(model.parameters())
    return case(model, images(), squared, "003", optimizer=optimizer)


@fault(33, "Lightning's freeze(train_bn=True)")
def norms_left_trainable_by_default() -> Case:
    model = detector()
    for module in model.backbone.modules():
        if not isinstance(module, nn.BatchNorm2d):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False
    optimizer = sgd(trainable(model))
    return case(model, images(), squared, "003", "101", optimizer=optimizer, frozen="backbone")


def _all_frozen(optimizer: Callable[..., torch.optim.Optimizer]) -> Case:
    model = mlp()
    flags_off(model)
    return case(model, vectors(), classes, "006", optimizer=optimizer(model.parameters()))


@fault(34, "WeatherGenerator#856")
def everything_frozen() -> Case:
    return _all_frozen(adamw)


@fault(34, "mmengine#1518")
def everything_frozen_with_momentum() -> Case:
    return _all_frozen(sgd)
