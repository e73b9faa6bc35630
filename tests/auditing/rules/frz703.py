"""Cases of FRZ703, reentrant-checkpoint-over-frozen-input."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.auditing.cases import Case
from tests.auditing.rules.frz303 import adapted
from tests.zoo import ZOO

_ONLY = frozenset({"FRZ703"})


class Recomputing(nn.Module):
    """Runs its body again in the backward, by a function in an attribute."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(2, 2), nn.Linear(2, 2)
        self.again = functools.partial(checkpoint, use_reentrant=reentrant)
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.body, self.stem(x)))


def _net(*, reentrant: bool = True, frozen: bool = True) -> Recomputing:
    torch.manual_seed(0)
    model = Recomputing(reentrant=reentrant)
    model.stem.requires_grad_(not frozen)
    return model


def _bert() -> Any:
    model = ZOO["bert"].build()
    model.bert.embeddings.requires_grad_(False)
    return model


def _recomputing(model: Any, *, reentrant: bool = True, inputs: bool = False) -> Any:
    """Whether inputs are made to require gradients; releases before 5 left that to the user."""
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if not inputs:
        model.disable_input_require_grads()
    return model


def _quiet(model: nn.Module, batch: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says it too, where one sees it
        return model(batch).mean()


def _with_input_gradients(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch.requires_grad_()).mean()


def bad_frozen_embeddings() -> Case:
    return Case(_recomputing(_bert()), codes=_ONLY)


def bad_adapters_over_frozen_embeddings() -> Case:
    return Case(_recomputing(adapted(_bert(), "query")), codes=_ONLY)


def bad_function_in_an_attribute() -> Case:
    return Case(_net(), codes=_ONLY)


def bad_measured() -> Case:
    codes = _ONLY | {"FRZ207"}
    return Case(_net(), batch=torch.randn(4, 2), compute_loss=_quiet, codes=codes)


def good_the_other_form() -> Case:
    return Case(_recomputing(_bert(), reentrant=False))


def good_input_gradients() -> Case:
    return Case(_recomputing(_bert(), inputs=True))


def good_adapters_on_what_recomputes() -> Case:
    """PEFT makes inputs require gradients then."""
    return Case(adapted(_recomputing(_bert()), "query"))


def good_trainable_embeddings() -> Case:
    model = _recomputing(_bert())
    model.bert.embeddings.requires_grad_(True)
    return Case(model)


def good_some_of_the_embeddings_are_trainable() -> Case:
    model = _recomputing(_bert())
    model.bert.embeddings.position_embeddings.requires_grad_(True)
    return Case(model)


def good_only_the_frozen_layer_recomputes() -> Case:
    model = _recomputing(_bert())
    model.bert.encoder.layer[0].requires_grad_(False)
    model.bert.encoder.layer[1].gradient_checkpointing = False
    return Case(model)


def good_trainable_stem() -> Case:
    return Case(_net(frozen=False))


def good_inputs_that_require_gradients_measured() -> Case:
    """By reading it would be cut off; it is not, as the step shows."""
    return Case(_net(), batch=torch.randn(4, 2), compute_loss=_with_input_gradients)


def good_switched_off() -> Case:
    model = _recomputing(_bert())
    model.activation_checkpointing_disable()
    return Case(model)


def good_other_form_measured() -> Case:
    return Case(_net(reentrant=False), batch=torch.randn(4, 2))


def good_trainable_stem_measured() -> Case:
    return Case(_net(frozen=False), batch=torch.randn(4, 2))
