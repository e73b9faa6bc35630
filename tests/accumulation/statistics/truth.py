"""What running statistics have to be, the slow way: the formula on all that a norm saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from frostline._state import same_bits
from frostline.accumulation.statistics.windows import RunningStatistics
from tests.zoo import live, seeded
from tests.zoo_batches import labelled

POLICIES = ("plain", "compensated", "deferred")
Calls = list[list[Tensor]]  # of each call in a forward: its inputs, one a microbatch
INPUTS = {
    "mlp_bn1d": labelled(10, 12),
    "conv_bn3d": labelled(10, 1, 6, 6, 6),
    "instance_norm": labelled(10, 3, 8, 8),
    "resnet18": labelled(10, 3, 32, 32),
    "mobilenetv3": labelled(10, 3, 32, 32),
}


class Shared(nn.Module):
    """One norm that is called twice, cumulative if it has no momentum."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(self.lift(x)).relu() * 2 + 1)


def is_norm(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor)


@contextmanager
def seen_by(model: nn.Module) -> Iterator[dict[nn.Module, Calls]]:
    """What every norm gets, by call number; the caller starts a forward by `start`."""
    seen: dict[nn.Module, Calls] = defaultdict(list)
    numbers: dict[nn.Module, int] = defaultdict(int)

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        number = numbers[module]
        numbers[module] += 1
        if number == len(seen[module]):
            seen[module].append([])
        seen[module][number].append(inputs[0].detach().clone())

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if is_norm(m)]
    handles.append(model.register_forward_pre_hook(lambda *_: numbers.clear()))
    yield seen
    for handle in handles:
        handle.remove()


def moments(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over N - 1 by hand; of an instance norm the mean over the samples."""
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        flat = x.flatten(2)
        return flat.mean(2).mean(0), flat.var(2).mean(0)
    flat = x.transpose(0, 1).flatten(1)
    mean = flat.mean(1)
    return mean, (flat - mean[:, None]).square().sum(1) / (flat.shape[1] - 1)


def by_hand(norm: nn.Module, calls: Calls) -> dict[str, Tensor]:
    """The norm's state after one update a call, each from all the inputs of that call."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    counter = norm.num_batches_tracked.clone()
    counts = not isinstance(norm, nn.modules.instancenorm._InstanceNorm)
    for inputs in calls:
        counter += counts
        m = norm.momentum if norm.momentum is not None else 1 / float(counter)
        new_mean, new_variance = moments(norm, torch.cat(inputs).double())
        mean = (1 - m) * mean + m * new_mean
        variance = (1 - m) * variance + m * new_variance
    return {"running_mean": mean, "running_var": variance, "num_batches_tracked": counter}


def cut(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    return list(x.split(list(sizes)))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


def run_window(
    statistics: RunningStatistics, model: nn.Module, microbatches: Sequence[Tensor]
) -> None:
    for microbatch in microbatches:
        with statistics.forward(len(microbatches)):
            model(microbatch)


def first_norm(seed: int = 0, momentum: float | None = 0.1) -> nn.Module:
    """A net whose only norm sees the same inputs whatever the microbatches."""
    with seeded(seed):
        return live(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=momentum)))
