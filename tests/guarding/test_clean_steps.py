"""Ten thousand clean steps, trained in the ways in which people train: not one alarm.

The counts add up to what `make test` runs; a false alarm is looked for where equal bytes are
written, memory is moved, modules are wrapped, or gradients touch everything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import FrozenStateChanged
from frostline.guarding.arguments import Proof
from frostline.guarding.pages.kernel import why_unavailable
from tests.freezing.content import content, moved
from tests.zoo import live, seeded

INPUTS = torch.linspace(-2, 3, 64).view(8, 8)
LABELS = torch.arange(8) % 3


class Small(nn.Module):
    """Frozen layers with a norm and one tensor of whole pages; a head and a scale that train."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 640, bias=False)
        )
        self.head = nn.Linear(640, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x)) * self.scale
        return out


def flagged() -> Small:
    with seeded(4):
        net = live(Small())
    net.backbone.requires_grad_(False)
    net.train()
    net.backbone.eval()
    assert isinstance(net, Small)
    return net


def head_of(net: Small) -> SGD:
    return SGD([*net.head.parameters(), net.scale], lr=0.01, momentum=0.9)


def loss_of(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(INPUTS), LABELS)


def steps(count: int, optimizer: Any, model: nn.Module, **zero: Any) -> Iterator[int]:
    """The usual loop; what else is done at a step is done by whoever takes its number."""
    for number in range(count):
        optimizer.zero_grad(**zero)
        loss_of(model).backward()
        yield number
        optimizer.step()


# --- ways of training --------------------------------------------------------------------------

Way = Callable[[Small, int], object]


def plain(net: Small, count: int) -> None:
    for _ in steps(count, head_of(net), net):
        pass


def everything_in_the_optimizer(net: Small, count: int) -> None:
    optimizer = AdamW(net.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    for _ in steps(count, optimizer, net):
        pass


def zeroed(net: Small, count: int) -> None:
    for _ in steps(count, SGD(net.parameters(), lr=0.01), net, set_to_none=False):
        pass


def clipped(net: Small, count: int) -> None:
    for _ in steps(count, head_of(net), net):
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)


def two_optimizers(net: Small, count: int) -> None:
    other = SGD([net.scale], lr=0.01)
    for _ in steps(count, SGD(net.head.parameters(), lr=0.01), net):
        other.step()
        net.scale.grad = None


def averaged(net: Small, count: int) -> None:
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    for _ in steps(count, head_of(net), net):
        average.update_parameters(net)


def saved(net: Small, count: int) -> None:
    for number in steps(count, head_of(net), net):
        if number % 50 == 0:
            copy.deepcopy(net.state_dict())


def evaluated(net: Small, count: int) -> None:
    """Validation in between, after which the modes are put back one by one."""
    for number in steps(count, head_of(net), net):
        if number % 20 == 0:
            modes = [(module, module.training) for module in net.modules()]
            net.eval()
            with torch.inference_mode():
                net(INPUTS)
            for module, mode in modes:
                module.training = mode


def autocast(net: Small, count: int) -> None:
    optimizer = head_of(net)
    for _ in range(count):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(net)
        loss.backward()
        optimizer.step()


def scaled(net: Small, count: int) -> None:
    """Every tenth step overflows and is left out, and is a step all the same."""
    optimizer, scaler = head_of(net), GradScaler("cpu", init_scale=2.0)
    for number in range(count):
        optimizer.zero_grad()
        loss = loss_of(net) * (torch.inf if number % 10 == 9 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def distributed(net: Small, count: int) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(net)
        for _ in steps(count, head_of(net), wrapped):
            pass
    finally:
        dist.destroy_process_group()


def compiled(backend: str) -> Way:
    def train(net: Small, count: int) -> None:
        torch.compiler.reset()
        for _ in steps(count, head_of(net), torch.compile(net, backend=backend)):
            pass

    return train


def checkpointed(*, reentrant: bool) -> Way:
    def train(net: Small, count: int) -> None:
        class Recomputed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                # Reentrant checkpointing wants an input that requires a gradient.
                x = x.detach().requires_grad_(reentrant)
                features = checkpoint(net.backbone, x, use_reentrant=reentrant)
                out: Tensor = net.head(features) * net.scale
                return out

        for _ in steps(count, head_of(net), Recomputed()):
            pass

    return train


def thrown_away(net: Small, count: int) -> None:
    """Memory comes and goes around the frozen tensors at every step."""
    for number in steps(count, head_of(net), net):
        rows = [torch.empty(1000 + 64 * (number % 7)).fill_(number) for _ in range(8)]
        del rows


WAYS: dict[str, tuple[int, Way, dict[str, Any]]] = {
    "plain": (2400, plain, {}),
    "content only": (1000, plain, {"proof": "content"}),
    "everything in the optimizer": (500, everything_in_the_optimizer, {}),
    "zero_grad(set_to_none=False)": (600, zeroed, {}),
    "clipping over all": (500, clipped, {}),
    "two optimizers": (500, two_optimizers, {}),
    "EMA of the whole model": (500, averaged, {}),
    "state_dict every 50 steps": (600, saved, {}),
    "validation every 20 steps": (500, evaluated, {}),
    "autocast": (500, autocast, {}),
    "GradScaler": (600, scaled, {}),
    "DistributedDataParallel": (500, distributed, {}),
    "torch.compile, eager": (400, compiled("eager"), {}),
    "torch.compile, aot_eager": (400, compiled("aot_eager"), {}),
    "checkpoint": (300, checkpointed(reentrant=False), {}),
    "checkpoint, reentrant": (300, checkpointed(reentrant=True), {}),
    "memory that comes and goes": (500, thrown_away, {}),
}


def test_there_are_ten_thousand() -> None:
    assert sum(count for count, *_ in WAYS.values()) >= 10_000


@contextmanager
def still(net: Small) -> Iterator[None]:
    """The frozen bytes stay as they are, and what trains does not."""
    before = content(net)
    yield
    changed = moved(before, net)
    assert not [name for name in changed if name.startswith("backbone")]
    assert {"head.weight", "scale"} <= set(changed)


@pytest.mark.parametrize("way", WAYS)
def test_clean_steps(way: str) -> None:
    count, train, how = WAYS[way]
    net = flagged()
    with still(net), fl.guard(net, **how) as guard:
        train(net, count)
    report = guard.report
    assert (report.ok, report.unchanged, report.steps) == (True, True, count)
    assert report.changes == []
    assert report.idle == []


def write_in_between(net: Small, count: int) -> None:
    for number in steps(count, head_of(net), net):
        if number == 50:
            net.backbone[3].weight.detach().numpy()[300, 5] += 1e-3


@pytest.mark.parametrize("proof", ["auto", "content"])
def test_one_element_among_clean_steps_is_an_alarm(proof: Proof) -> None:
    """The control: the same guard, the same steps, and one element."""
    net = flagged()
    guard = fl.guard(net, proof=proof)
    with pytest.raises(FrozenStateChanged) as caught, guard:
        write_in_between(net, 400)
    (change,) = caught.value.changes
    assert (change.name, change.changed_elements) == ("backbone.3.weight", 1)
    pages = proof == "auto" and not why_unavailable()
    assert change.tier == ("pages" if pages else "content")
    assert change.step == 51 if pages else 51 <= change.step <= 51 + (guard.report.coverage or 0)
