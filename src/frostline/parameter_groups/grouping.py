"""``param_groups``: every trainable parameter in exactly one group, with what is asked for it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any, Literal

from torch import Tensor, nn

from frostline._names import places
from frostline.errors import FrostlineWarning, SelectionError
from frostline.parameter_groups import arguments
from frostline.parameter_groups.choosing import Choice, choose, is_for_optimizers, slots_of
from frostline.parameter_groups.decay import spared
from frostline.parameter_groups.layers import layers
from frostline.selection import Selector


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    no_decay: Selector | EllipsisType = ...,
    groups: Mapping[Any, float | Mapping[str, Any]] | None = None,
    frozen: Literal["skip", "keep"] = "skip",
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: each trainable parameter in exactly one of them.

    ``torch.optim.AdamW(fl.param_groups(model, 1e-3, weight_decay=0.05))``. Parameters are told
    apart by identity, so a tied tensor stands in one group. The model is not changed.

    Args:
        model: the model; wrappers (``torch.compile``, DDP, PEFT) are seen through.
        lr: the learning rate, 0 or above.
        weight_decay: the weight decay, 0 or above; where it is 0, groups are not split by decay.
        layer_decay: a factor in (0, 1]. A parameter's learning rate is ``lr * layer_decay **
            (layers above its own)``: ``lr`` at the top, smaller towards the input. Layers are what
            timm's ``group_matcher`` says where the model has one, else the numbered blocks in the
            order of the model; what comes before the first is the stem, what comes after the last
            the top. It multiplies the learning rates of ``groups`` as well.
        no_decay: a selector of what gets weight decay 0. ``...`` is the usual rule: biases, what
            has at most one dimension (the scales and shifts of norms), and what the model's own
            ``no_weight_decay()`` names (timm's convention; the outermost module that has one
            speaks for all below it). None: everything decays.
        groups: learning rates or options by selector, for example ``{"backbone": 1e-5, "head":
            {"lr": 1e-3, "betas": (0.9, 0.99)}}``. The first that matches wins; the rest of the
            model has ``lr``. Options go to the optimizer as they are, ``weight_decay`` among them
            (it replaces the argument, ``no_decay`` holds all the same); ``name`` is the label.
        frozen: ``"skip"`` leaves out what has ``requires_grad=False``; ``"keep"`` keeps it in, so
            that the groups are the same whatever is frozen, and a later ``unfreeze`` needs no new
            one. What cannot require gradients (integers) is out in both. Under ``"skip"`` a warning
            tells when all of a named group is frozen.

    Returns:
        The groups in the order of the model, none of them empty, each with ``params``, ``name``
        (such as ``"backbone, layer 2, no decay"``), ``lr``, ``weight_decay`` and its options.

    Raises:
        SelectionError: if a selector matches no parameter, all of its parameters stand in earlier
            groups, the places of a tied tensor fall into groups that differ, nothing is
            trainable, parameters are lazy, or ``layer_decay`` finds no layers.
        TypeError: if the model is none, or a number is none.
        ValueError: if a number is out of its range.

    Layer-wise decay: Clark et al., ELECTRA, 2020, arXiv:2003.10555.

    Example:
        >>> import torch, frostline as fl
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> for group in fl.param_groups(net, 0.1, weight_decay=0.01, layer_decay=0.5):
        ...     print(group["name"], len(group["params"]), group["lr"], group["weight_decay"])
        layer 0 1 0.05 0.01
        layer 0, no decay 1 0.05 0.0
        layer 1 1 0.1 0.01
        layer 1, no decay 1 0.1 0.0
    """
    arguments.check(model, lr, weight_decay, layer_decay, groups, frozen)
    everything = places(model)
    arguments.refuse_lazy(everything)
    entries = [entry for entry in everything.tensors if is_for_optimizers(entry)]
    rest = Choice(
        "rest" if groups else "model" if layer_decay is None else "",
        {"lr": float(lr), "weight_decay": float(weight_decay)},
        slots_of(entries),
    )
    chosen = choose(model, entries, groups or {}, rest)
    undecayed = spared(model, entries, no_decay)
    layer_of = layers(everything) if layer_decay is not None else {}
    top = max(layer_of.values(), default=0)

    found: dict[tuple[int, int | None, bool], dict[str, Any]] = {}
    for tensor, choice in chosen if frozen == "keep" else _trainable(model, chosen, rest):
        layer = layer_of.get(id(tensor))
        bare = choice.options["weight_decay"] != 0 and id(tensor) in undecayed
        key = id(choice), layer, bare
        if key not in found:
            above = 0 if layer is None else top - layer
            scale = 1.0 if layer_decay is None else float(layer_decay) ** above
            found[key] = choice.group(layer, scale, bare)
        found[key]["params"].append(tensor)
    return list(found.values())


def _trainable(
    model: nn.Module, chosen: Sequence[tuple[Tensor, Choice]], rest: Choice
) -> list[tuple[Tensor, Choice]]:
    """``chosen`` without what is frozen; a choice of which nothing is left is told."""
    wanted = [(tensor, choice) for tensor, choice in chosen if tensor.requires_grad]
    if not wanted:
        raise SelectionError(
            f"nothing in this {type(model).__name__} is trainable: all {len(chosen)} parameters "
            "have requires_grad=False. Make a part trainable, fl.unfreeze(model, 'head'), or keep "
            "the frozen ones in the groups: frozen='keep'"
        )
    left = {rest, *(choice for _, choice in wanted)}
    for choice in dict.fromkeys(choice for _, choice in chosen):
        if choice not in left:
            warnings.warn(
                f'every parameter of "{choice.label}" is frozen, so its group is left out. '
                "frozen='keep' keeps it, for a later unfreeze",
                FrostlineWarning,
                stacklevel=3,
            )
    return wanted
