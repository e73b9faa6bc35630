"""What a guard costs, and how late it is: always as a pair.

    python bench/guard.py [--json PATH] [--rounds 7] [--trials 200] [--only NAME]

A guard that looks at nothing costs nothing, and one that reads everything at every step is never
late; so each row gives both. Cost: the time that a way of guarding takes at each training step,
over the time of the step without it, ways in alternation. Latency: a random bit of the frozen bytes
is flipped through `ctypes`, and the steps until it is reported are counted.

Ways: the guard with pages; with content alone; with content and no time (`overhead=0`, the
control, which must fail); and two that an expert writes today: XXH3 over every frozen tensor after
each step, and a comparison of version counters.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import _torchvision

OVERHEAD = 0.01


class Workload(NamedTuple):
    """A model with a frozen part, and one training step of the rest."""

    model: nn.Module
    frozen: str
    step: Callable[[], None]


def workload(model: nn.Module, frozen: str, loss: Callable[[], Tensor]) -> Workload:
    part = model.get_submodule(frozen)
    part.requires_grad_(False).eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return Workload(model, frozen, step)


def digits_net() -> Workload:
    """A step of about 1 ms."""
    layers = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    model = nn.ModuleDict({"backbone": nn.Sequential(*layers), "head": nn.Linear(512, 10)})
    x, y = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    return workload(
        model,
        "backbone",
        lambda: F.cross_entropy(model["head"](model["backbone"](x).flatten(1)), y),
    )


def of_timm(name: str, size: int, batch: int) -> Workload:
    import timm

    backbone = timm.create_model(name, num_classes=0)
    model = nn.ModuleDict({"backbone": backbone, "head": nn.LazyLinear(10)})
    x, y = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    model["head"](backbone.eval()(x))
    return workload(model, "backbone", lambda: F.cross_entropy(model["head"](backbone(x)), y))


def bert_base() -> Workload:
    from transformers import BertConfig, BertModel

    backbone = BertModel(BertConfig())
    model = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(768, 10)})
    ids, y = torch.randint(3, 30000, (1, 32)), torch.randint(10, (1,))
    return workload(
        model,
        "backbone",
        lambda: F.cross_entropy(model["head"](backbone(input_ids=ids).pooler_output), y),
    )


def embedding() -> Workload:
    """1 GB of frozen embedding under a head whose step takes about 5 ms."""
    table = nn.Embedding(1_000_000, 250)
    head = nn.Sequential(nn.Linear(250, 900), nn.ReLU(), nn.Linear(900, 10))
    model = nn.ModuleDict({"backbone": table, "head": head})
    ids, y = torch.randint(1_000_000, (96,)), torch.randint(10, (96,))
    return workload(model, "backbone", lambda: F.cross_entropy(head(table(ids)), y))


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "digits net": digits_net,
    "MobileNetV3-small": lambda: of_timm("mobilenetv3_small_100", 96, 4),
    "ResNet-50": lambda: of_timm("resnet50", 64, 2),
    "BERT-base": bert_base,
    "1 GB embedding": embedding,
}


# --- ways of guarding ------------------------------------------------------------------------


class Expert:
    """What one writes today: something computed after every step, and compared."""

    def __init__(self, work: Workload, read: Callable[[list[Tensor]], object]) -> None:
        self._tensors = list(work.model.get_submodule(work.frozen).state_dict().values())
        self._read = read
        self._before = read(self._tensors)

    def look(self) -> bool:
        return self._read(self._tensors) != self._before


def _xxh3(tensors: list[Tensor]) -> object:
    return [xxhash.xxh3_64_intdigest(t.numpy()) for t in tensors]


def _versions(tensors: list[Tensor]) -> object:
    return [t._version for t in tensors]


Look = Callable[[], bool]


@contextmanager
def ours(work: Workload, **switches: Any) -> Iterator[Look]:
    """A guard that collects; looking is done by its own hook."""
    with fl.guard(work.model, work.frozen, on_change="warn", **switches):
        yield lambda: False


WAYS: dict[str, Callable[[Workload], Any]] = {
    "none": lambda work: nullcontext(lambda: False),
    "pages": lambda work: ours(work, proof="pages"),
    "content": lambda work: ours(work, proof="content", overhead=OVERHEAD),
    "content, overhead=0": lambda work: ours(work, proof="content", overhead=0.0),
    "expert: XXH3 of all": lambda work: nullcontext(Expert(work, _xxh3).look),
    "expert: versions": lambda work: nullcontext(Expert(work, _versions).look),
}


# --- cost ------------------------------------------------------------------------------------


def costs(work: Workload, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a step for each way, one figure a round."""
    for _ in range(3):
        work.step()
    started = time.perf_counter()
    work.step()
    count = max(5, int(seconds / (time.perf_counter() - started)))
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in sorted(WAYS, key=lambda way: hash((number, way))):
            with WAYS[way](work) as look:
                for _ in range(3):
                    work.step()
                    look()
                started = time.perf_counter()
                for _ in range(count):
                    work.step()
                    look()
                found[way].append((time.perf_counter() - started) / count)
    return found


def own_seconds(work: Workload, step_seconds: float, **switches: Any) -> dict[str, Any]:
    """Seconds of each look of a guard: of the first ones, and after thousands.

    With pages the kernel is asked faster once looking has cost as much as making huge pages does.
    """
    with fl.guard(work.model, work.frozen, on_change="warn", **switches) as guard:
        engine = guard._engine
        for _ in range(3):
            engine.look(step_seconds)
        early = [timed(lambda: engine.look(step_seconds)) for _ in range(200)]
        for _ in range(6000 if switches["proof"] == "pages" else 0):
            engine.look(step_seconds)
        late = [timed(lambda: engine.look(step_seconds)) for _ in range(200)]
        announced = engine.patrol.announced
        entry = guard.report.seconds["entry"]
        full = timed(engine.full_check)
    return {
        "early": early,
        "late": late,
        "announced": announced,
        "entry": entry,
        "full_check": full,
    }


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


# --- latency ---------------------------------------------------------------------------------


def flip(tensor: Tensor, draw: random.Random) -> Callable[[], None]:
    """Flip one bit, past everything torch could see; what flips it back."""
    address = tensor.data_ptr() + draw.randrange(tensor.nbytes)
    byte, bit = ctypes.c_ubyte.from_address(address), 1 << draw.randrange(8)

    def turn() -> None:
        byte.value ^= bit

    turn()
    return turn


def latencies(
    work: Workload, trials: int, step_seconds: float, **switches: Any
) -> list[int | None]:
    """Steps until each of ``trials`` flipped bits was reported; None if it never was.

    The looks are made without the steps between them, which would take hours: what a look reads
    depends on how long a step takes, so the engine is told that.
    """
    draw = random.Random(0)
    part = [t for t in work.model.get_submodule(work.frozen).state_dict().values() if t.nbytes]
    weights = [t.nbytes for t in part]
    found: list[int | None] = []
    with fl.guard(work.model, work.frozen, on_change="warn", **switches) as guard:
        engine = guard._engine
        for _ in range(draw.randrange(3, 40)):
            engine.look(step_seconds)
        for _ in range(trials):
            for _ in range(draw.randrange(4)):
                engine.look(step_seconds)
            back = flip(draw.choices(part, weights)[0], draw)
            bound = 4 * (engine.patrol.announced or 50) + 4
            steps = next((i for i in range(1, bound) if engine.look(step_seconds)), None)
            found.append(steps)
            back()
            engine.look(step_seconds)
        announced = engine.patrol.announced or 1
    return {"steps": found, "announced": announced}


def versions_latency(work: Workload, trials: int) -> dict[str, Any]:
    draw = random.Random(0)
    part = [t for t in work.model.get_submodule(work.frozen).state_dict().values() if t.nbytes]
    expert = Expert(work, _versions)
    found: list[int | None] = []
    for _ in range(trials):
        back = flip(draw.choice(part), draw)
        found.append(1 if expert.look() else None)
        back()
    return {"steps": found, "announced": 1}


# --- telling ---------------------------------------------------------------------------------


def measure(name: str, rounds: int, trials: int, seconds: float) -> dict[str, Any]:
    work = WORKLOADS[name]()
    nbytes = sum(t.nbytes for t in work.model.get_submodule(work.frozen).state_dict().values())
    taken = costs(work, rounds, seconds)
    step = statistics.median(taken["none"])
    return {
        "bytes": nbytes,
        "step_seconds": taken,
        "own": {
            "pages": own_seconds(work, step, proof="pages"),
            "content": own_seconds(work, step, proof="content", overhead=OVERHEAD),
        },
        "latency": {
            "pages": latencies(work, trials, step, proof="pages"),
            "content": latencies(work, trials, step, proof="content", overhead=OVERHEAD),
            "content, overhead=0": latencies(
                work, min(trials, 20), step, proof="content", overhead=0.0
            ),
            "expert: versions": versions_latency(work, trials),
        },
    }


def tell(name: str, found: dict[str, Any]) -> None:
    steps = found["step_seconds"]
    base = statistics.median(steps["none"])
    print(f"{name}: {found['bytes'] / 1e6:.1f} MB frozen, a step takes {base * 1e3:.2f} ms")
    for way in WAYS:
        if way == "none":
            continue
        more = [a / b - 1 for a, b in zip(steps[way], steps["none"], strict=True)]
        late = found["latency"].get(way)
        told = "1 step" if way == "expert: XXH3 of all" else _late(late)
        own = found["own"].get(way)
        mine = f"{_own(own)}, N={own['announced']}" if own else ""
        print(f"  {way:<22} {100 * statistics.median(more):+7.2f} %  latency {told}  {mine}")


def _own(own: dict[str, Any]) -> str:
    early, late = (statistics.median(own[key]) * 1e6 for key in ("early", "late"))
    return f"own {early:.0f} us, later {late:.0f} us"


def _late(found: dict[str, Any] | None) -> str:
    if not found:
        return "-"
    late = found["steps"]
    seen = [x for x in late if x is not None]
    if len(seen) < len(late):
        return f"{len(late) - len(seen)} of {len(late)} never seen"
    return f"median {statistics.median(seen):g}, worst {max(seen)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the raw samples there")
    parser.add_argument("--rounds", type=int, default=7, help="alternated rounds, at least 7")
    parser.add_argument("--trials", type=int, default=200, help="flipped bits for each way")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each way in each round")
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", fl.errors.FrostlineWarning)  # "nothing ran", as it is meant
    _torchvision.install()
    found = {}
    for name in [arguments.only] if arguments.only else WORKLOADS:
        found[name] = measure(name, arguments.rounds, arguments.trials, arguments.seconds)
        tell(name, found[name])
    if arguments.json:
        record = {"torch": torch.__version__, "overhead": OVERHEAD, "workloads": found}
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
