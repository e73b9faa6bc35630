"""Why the output changed: what moved, by which formula, and what putting it back does."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline.demo.branches import Witness
from frostline.demo.nets import TwoBranches

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Moved:
    """A state-dict entry of the frozen part that is no parameter.

    Attributes:
        name: full name.
        elements: how many numbers it holds.
        changed: how many of them are others now.
        by: the largest difference.
    """

    name: str
    elements: int
    changed: int
    by: float


@dataclass(frozen=True)
class Formula:
    """One channel of the first norm in the first training batch.

    ``new = (1 - momentum) * running + momentum * observed``, where the observed variance is the
    one over ``values - 1``.

    Attributes:
        layer: full name of the norm.
        channel: which one, the one that moved most.
        momentum: of the norm.
        values: how many numbers of the channel the batch holds (images times pixels).
        mean: running, observed, computed by the formula, found in the buffer.
        variance: the same for the running variance.
        biased: the variance over ``values``, with which the batch itself is normalised.
        largest_error: formula against buffer, over all channels, mean and variance.
    """

    layer: str
    channel: int
    momentum: float
    values: int
    mean: tuple[float, float, float, float]
    variance: tuple[float, float, float, float]
    biased: float
    largest_error: float


@dataclass(frozen=True)
class Why:
    """What the flag said and what moved nevertheless.

    Attributes:
        trainable: parameters that require gradients.
        frozen_parameters: how many of trunk and main branch do not.
        frozen_parameters_changed: how many of those changed in any bit.
        moved: the entries of the frozen part that are no parameters.
        formula: with this run's numbers in it.
    """

    trainable: list[str]
    frozen_parameters: int
    frozen_parameters_changed: int
    moved: list[Moved]
    formula: Formula

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Counterfactual:
    """The running statistics of the frozen part put back, and nothing else.

    Attributes:
        put_back: names of the entries.
        before: output on the fixed input before the second branch was trained.
        after: output after it.
        restored: output with the statistics put back.
    """

    put_back: list[str]
    before: list[float]
    after: list[float]
    restored: list[float]

    @property
    def same_bits(self) -> bool:
        """Whether the restored output is the first one, bit for bit."""
        return torch.equal(torch.tensor(self.before), torch.tensor(self.restored))

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {**asdict(self), "same_bits": self.same_bits}


def why(witness: Witness) -> Why:
    """Compare the frozen part with what it was."""
    after = witness.model.state_dict()
    parameters = dict(witness.model.named_parameters())
    frozen = [name for name, tensor in parameters.items() if not tensor.requires_grad]
    others = [name for name in after if name not in parameters]
    changed = [name for name in frozen if not torch.equal(after[name], witness.before[name])]
    return Why(
        trainable=[name for name, tensor in parameters.items() if tensor.requires_grad],
        frozen_parameters=len(frozen),
        frozen_parameters_changed=len(changed),
        moved=[_moved(name, witness.before[name], after[name]) for name in others],
        formula=_formula(witness),
    )


def counterfactual(witness: Witness) -> Counterfactual:
    """Put back the running statistics alone, on a copy."""
    after = witness.model.state_dict()
    names = [name for name in after if name.rpartition(".")[2] in STATISTICS]
    mended = copy.deepcopy(witness.model)
    mended.load_state_dict({**after, **{name: witness.before[name] for name in names}})
    original = copy.deepcopy(witness.model)
    original.load_state_dict(dict(witness.before))
    models = (original, witness.model, mended)
    return Counterfactual(names, *(_answer(model, witness.test.images) for model in models))


def _moved(name: str, before: Tensor, after: Tensor) -> Moved:
    difference = (after.double() - before.double()).abs()
    changed = int((difference != 0).sum())
    return Moved(name, after.numel(), changed, float(difference.max()))


def _formula(witness: Witness) -> Formula:
    model = copy.deepcopy(witness.model)
    model.load_state_dict(dict(witness.before))
    layer, norm = "trunk.block1.norm", model.trunk.block1.norm
    old_mean, old_var = _statistics(norm)
    seen = _seen(model, norm, witness.first_batch)
    new_mean, new_var = _statistics(norm)

    momentum = witness.model.trunk.block1.norm.momentum or 0.0
    observed = seen.mean(1), seen.var(1, correction=1)
    mean = (1 - momentum) * old_mean + momentum * observed[0]
    var = (1 - momentum) * old_var + momentum * observed[1]
    error = torch.stack([mean - new_mean, var - new_var]).abs().max()
    k = int((new_mean - old_mean).abs().argmax())
    return Formula(
        layer=layer,
        channel=k,
        momentum=momentum,
        values=seen.shape[1],
        mean=(float(old_mean[k]), float(observed[0][k]), float(mean[k]), float(new_mean[k])),
        variance=(float(old_var[k]), float(observed[1][k]), float(var[k]), float(new_var[k])),
        biased=float(seen[k].var(correction=0)),
        largest_error=float(error),
    )


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise AssertionError("the norms of the story track statistics")
    return norm.running_mean.double(), norm.running_var.double()


@torch.no_grad()
def _seen(model: TwoBranches, norm: nn.Module, batch: Tensor) -> Tensor:
    """What the norm was given in one training-mode forward: float64, (channels, values)."""
    inputs: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        model.train()(batch, branch="second")
    finally:
        handle.remove()
    return inputs[0].double().transpose(0, 1).flatten(1)


@torch.no_grad()
def _answer(model: TwoBranches, test: Tensor) -> list[float]:
    answer: list[float] = model.eval()(test[:1])[0].tolist()
    return answer
