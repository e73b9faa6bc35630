"""Cases of FRZ002, misspelt-flag."""

from __future__ import annotations

from torch import nn

from tests.auditing.cases import Case
from tests.zoo import ZOO

_ONLY = frozenset({"FRZ002"})
SPELLINGS = (
    "require_grad", "requires_grads", "require_grads", "required_grad", "requires_gard",
    "requires_grad_", "requiresGrad", "reqires_grad",
)  # fmt: skip


class Configured(nn.Linear):
    """Asks for input gradients by an attribute of this name."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.require_grad = False

    def extra_repr(self) -> str:
        return f"require_grad={self.require_grad}"


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 1))


def bad_parameters_of_a_backbone() -> Case:
    model = ZOO["resnet18"].build()
    for name, parameter in model.named_parameters():
        if not name.startswith("fc."):
            parameter.require_grad = False
    return Case(model, codes=_ONLY)


def bad_one_parameter() -> Case:
    model = _net()
    model[0][1].weight.requires_grads = False
    return Case(model, codes=_ONLY)


def bad_every_spelling() -> Case:
    model = nn.ModuleList(nn.Linear(2, 2) for _ in SPELLINGS)
    for layer, name in zip(model, SPELLINGS, strict=True):
        setattr(layer.weight, name, False)
    return Case(model, codes=_ONLY)


def bad_modules() -> Case:
    model = _net()
    for module in model[0].modules():
        module.require_grad = False
    return Case(model, codes=_ONLY)


def bad_method_that_was_assigned_to() -> Case:
    model = _net()
    model[0].requires_grad_ = False
    return Case(model, codes=_ONLY)


def bad_unfreeze() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    model[0][1].weight.require_grad = True
    return Case(model, codes=_ONLY)


def good_other_words() -> Case:
    model = _net()
    model[0][0].weight.requires_graph = False
    model[0][0].weight.requires_gradient_sync = False
    model[0][0].weight.grad_checked = False
    model[0].grad = None
    model[0].require_forward_param_sync = False
    return Case(model)


def good_word_of_the_class_itself() -> Case:
    return Case(nn.Sequential(Configured(), nn.Linear(2, 1)))


def good_says_what_is_so() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    for parameter in model[0].parameters():
        parameter.require_grad = False
    return Case(model)


def good_no_flag_but_a_number() -> Case:
    model = _net()
    model[0].require_grads = 3
    return Case(model)
