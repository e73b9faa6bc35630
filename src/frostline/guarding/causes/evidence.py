"""Evidence: what is known of a changed tensor, and of what went on between two looks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._names import TensorKind
from frostline.guarding.reference import sampled


@dataclass(eq=False)
class TensorEvidence:
    """One changed tensor.

    Attributes:
        name: its full name.
        owner: the module that holds it.
        attribute: its name within ``owner``.
        kind: parameter, buffer, or a plain attribute.
        tensor: what is there now; None if nothing is.
        old: a full copy of what was there, or None.
        sample: flat positions and the values that were there, or None.
        version_moved: whether its version counter moved; None where it has none.
        pointer_moved: whether its memory is elsewhere.
        replaced: whether it is another object.
    """

    name: str
    owner: nn.Module
    attribute: str
    kind: TensorKind
    tensor: Tensor | None
    old: Tensor | None
    sample: tuple[Tensor, Tensor] | None
    version_moved: bool | None
    pointer_moved: bool = False
    replaced: bool = False


@dataclass(eq=False)
class Load:
    """A call of ``load_state_dict``.

    Attributes:
        module: on which module.
        keys: what was in the state dict; as a mapping also a few values of each, see
            :func:`fingerprint`, so that a load of what was there already is told apart.
        where: ``file:line`` of the caller.
    """

    module: nn.Module
    keys: Collection[str]
    where: str


@dataclass(eq=False)
class Conversion:
    """A cast or a move: ``half()``, ``to()``, ``cuda()`` and whatever else uses ``_apply``."""

    module: nn.Module
    where: str


@dataclass(eq=False)
class Apply:
    """A call of ``module.apply(function)``."""

    module: nn.Module
    function: str
    where: str


class TensorStep(NamedTuple):
    """What an optimizer had of one tensor when it stepped.

    Attributes:
        group: number of the parameter group.
        options: of the group, as they were.
        had_grad: whether there was a gradient.
        zero_grad: whether it was zero everywhere; None if it was not read.
    """

    group: int
    options: Mapping[str, Any]
    had_grad: bool
    zero_grad: bool | None


@dataclass(eq=False)
class StepEvidence:
    """A step of an optimizer.

    Attributes:
        optimizer: which.
        options: of each of its groups at the step, without the parameters.
        zero_grads: id of each frozen tensor that had a gradient, and whether that was zero.
        found_inf: of a ``GradScaler``: when it is not 0, a fused step wrote nothing.
    """

    optimizer: Optimizer
    options: Sequence[Mapping[str, Any]]
    zero_grads: Mapping[int, bool | None]
    found_inf: Tensor | None = None

    def of(self, tensor: Tensor) -> TensorStep | None:
        """What it had of ``tensor``; None if no group holds it."""
        for number, options in enumerate(self.options):
            members = self.optimizer.param_groups[number]["params"]
            if any(member is tensor for member in members):
                had = id(tensor) in self.zero_grads
                return TensorStep(number, options, had, self.zero_grads.get(id(tensor)))
        return None

    @property
    def was_skipped(self) -> bool:
        """Whether a gradient was infinite, so that the fused step wrote nothing."""
        return self.found_inf is not None and bool(self.found_inf.item())


@dataclass(eq=False)
class WindowEvidence:
    """What went on between two looks.

    Attributes:
        loads: every ``load_state_dict``.
        conversions: every cast and move.
        applies: every ``module.apply``.
        steps: every step of an optimizer.
        models: the models that the tensors belong to; what stands above a module is found there.
    """

    loads: list[Load] = field(default_factory=list)
    conversions: list[Conversion] = field(default_factory=list)
    applies: list[Apply] = field(default_factory=list)
    steps: list[StepEvidence] = field(default_factory=list)
    models: Sequence[nn.Module] = ()


def before_step(optimizer: Optimizer, frozen: Mapping[str, Tensor]) -> StepEvidence:
    """Note what ``optimizer`` is about to step on.

    Costs one look at ``.grad`` for each frozen tensor; only gradients that are there are read.
    """
    having = [t for t in frozen.values() if t.is_leaf and t.grad is not None]
    options = [
        {key: _kept(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return StepEvidence(
        optimizer, options, _zero_grads(having), getattr(optimizer, "found_inf", None)
    )


def _kept(option: Any) -> Any:
    # A learning rate that is a tensor is written in place by schedulers.
    return option.detach().clone() if isinstance(option, Tensor) else option


def _zero_grads(tensors: Iterable[Tensor]) -> dict[int, bool | None]:
    found: dict[int, bool | None] = {}
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        grad = tensor.grad
        found[id(tensor)] = None
        if grad is not None and type(grad) is Tensor and grad.layout is torch.strided:
            by_device.setdefault(grad.device, []).append(tensor)
    for several in by_device.values():
        grads = [t.grad.detach() for t in several if t.grad is not None and t.grad.numel()]
        read = [t for t in several if t.grad is not None and t.grad.numel()]
        # One answer for all, so that a device is waited for once.
        any_ = torch.stack([(grad != 0).any() for grad in grads]).tolist() if grads else []
        found |= {id(t): not moved for t, moved in zip(read, any_, strict=True)}
    return found


_PRINTS = 16  # values of each tensor that a load is recognised by


def fingerprint(value: Any) -> Tensor | None:
    """A few values of a loaded tensor at fixed places; None for what cannot be read."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        return None
    if type(value) not in (Tensor, nn.Parameter) or value.is_quantized or not value.numel():
        return None
    return sampled(value, places(value.numel()))


def places(count: int) -> Tensor:
    """The flat positions of these values in a tensor of ``count`` elements."""
    return torch.linspace(
        0, count - 1, min(_PRINTS, count), dtype=torch.float64, device="cpu"
    ).long()
