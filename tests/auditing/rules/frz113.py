"""Cases of FRZ113, checkpointing-switched-off."""

from __future__ import annotations

from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO

_ONLY = frozenset({"FRZ113"})


def _bert(*, checkpointing: bool = True) -> nn.Module:
    model = ZOO["bert"].build()
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.bert.encoder.requires_grad_(False)
    return model


class Plain(nn.Linear):
    """A near miss: it checkpoints whatever its mode is."""

    gradient_checkpointing = True


def bad_encoder_in_eval() -> Case:
    model = _bert()
    model.bert.encoder.eval()
    return Case(model, codes=_ONLY)


def bad_inputs_made_to_require_gradients() -> Case:
    """As transformers does it where checkpointing is switched on."""
    model = _bert()
    model.bert.requires_grad_(False).eval()
    return Case(model, codes=_ONLY)


def good_held() -> Case:
    model = _bert()
    fl.freeze(model, "bert.encoder")
    return Case(model.train())


def good_held_from_eval_on() -> Case:
    model = _bert()
    model.bert.encoder.eval()
    fl.freeze(model, "bert.encoder")
    return Case(model.train())


def good_checkpointing_is_off() -> Case:
    model = _bert(checkpointing=False)
    model.bert.encoder.eval()
    return Case(model)


def good_no_gradient_passes() -> Case:
    model = _bert()
    model.disable_input_require_grads()
    model.bert.requires_grad_(False).eval()
    return Case(model)


def good_it_checkpoints_in_every_mode() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Plain(2, 2), Plain(2, 2)))
    model[1].requires_grad_(False).eval()
    return Case(model)
