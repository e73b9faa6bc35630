"""What the tests show on a CPU, shown on a GPU: the hold, the seal, the guard, exact windows.

    python bench/gpu_facts.py [--only WORD] [--json PATH]

Each fact is a function below; what it returns is what was seen, and an assertion that fails is a
fact that does not hold. The answers go to bench/results/gpu_facts.json.
"""

# ruff: noqa: S101 -- an assertion is how a fact is told from what is not one

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import zoo
from tests.accumulation.exact.cases import CASES, SWEPT, Case, each_tensor, even, size_of
from tests.accumulation.exact.truth import TIMES_NOISE, distance, own_error, run, truth

PATH = Path(__file__).parent / "results" / "gpu_facts.json"
DEVICE = "cuda"
OFFLOADS = (None, "cpu", "disk")
NAMES = (*SWEPT, "spectral norm, new", "teacher after", "timm densenet, checkpointed")


def bits(part: fl.types.FrozenPart) -> dict[str, bytes]:
    """The bytes of all tensors of a part."""
    flat = {name: t.detach().cpu().reshape(-1) for name, t in part.tensors.items()}
    return {name: t.view(torch.uint8).numpy().tobytes() for name, t in flat.items()}


def net() -> nn.Sequential:
    """A backbone with norms and a head, with statistics that have lived."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return zoo.live(nn.Sequential(backbone, head)).train().to(DEVICE)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(16, 3, 12, 12, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = model(x).float().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# --- the hold ----------------------------------------------------------------------------------


def recurrent_layers_go_backward_while_held() -> str:
    """F68: cuDNN has no backward in eval mode; the held layer gives the numbers of eval."""
    seen = []
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        torch.manual_seed(0)
        layer = kind(6, 8, num_layers=2, dropout=0.5).to(DEVICE)
        expected = copy.deepcopy(layer).eval()(torch.ones(5, 3, 6, device=DEVICE))[0]
        try:
            x = torch.ones(5, 3, 6, device=DEVICE, requires_grad=True)
            copy.deepcopy(layer).eval()(x)[0].sum().backward()
            seen.append(f"{kind.__name__}: plain .eval() went backward")
        except RuntimeError as error:
            seen.append(f"{kind.__name__}: plain .eval() raises {str(error)[:60]!r}")
        first = nn.Linear(6, 6).to(DEVICE)
        part = fl.freeze(layer)
        layer.train()
        output = layer(first(torch.ones(5, 3, 6, device=DEVICE)))[0]
        output.square().sum().backward()
        assert first.weight.grad is not None
        assert part.changes() == []
        held = layer(torch.ones(5, 3, 6, device=DEVICE, requires_grad=True))[0]
        seen.append(f"held, farthest from eval {float((held - expected).detach().abs().max()):.1e}")
        assert torch.allclose(held, expected, atol=1e-6)
    return "; ".join(seen)


def norms_stay_in_bits_under_autocast() -> str:
    model, control = net(), net()
    part = fl.freeze(model, "0")
    before = bits(part)
    for one in (model, control):
        optimizer = torch.optim.AdamW(one.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(20):
            one.train()
            step(one, optimizer)
    assert bits(part) == before
    assert part.changes() == []
    both = zip(control[0].buffers(), model[0].buffers(), strict=True)
    moved = sum(not torch.equal(unheld, held) for unheld, held in both)
    assert moved == 6
    return "20 steps of AdamW under bfloat16 autocast: 0 bits; unheld, all 6 buffers moved"


def optimizers_of_gpus_leave_it_alone() -> str:
    made = {
        "AdamW(fused)": partial(torch.optim.AdamW, fused=True),
        "AdamW(capturable)": partial(torch.optim.AdamW, capturable=True),
        "SGD(fused)": partial(torch.optim.SGD, momentum=0.9, fused=True),
    }
    for optimizer_of in made.values():
        model = net()
        optimizer = optimizer_of(model.parameters(), lr=0.1, weight_decay=0.1)
        step(model, optimizer)  # state and gradients of what is frozen only now
        part = fl.freeze(model, "0")
        before = bits(part)
        for _ in range(5):
            step(model, optimizer)
        assert bits(part) == before
    return ", ".join(made)


def a_captured_step_leaves_it_alone() -> str:
    model = net()
    part = fl.freeze(model, "0")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, capturable=True)
    x = torch.randn(16, 3, 12, 12, device=DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            _plain_step(model, optimizer, x)
    torch.cuda.current_stream().wait_stream(stream)
    before, head = bits(part), model[1][2].weight.detach().clone()
    graph = torch.cuda.CUDAGraph()
    with fl.guard(part) as guard:
        with torch.cuda.graph(graph):
            _plain_step(model, optimizer, x)
        for _ in range(5):
            graph.replay()
    assert bits(part) == before
    assert not torch.equal(model[1][2].weight, head)
    return f"5 replays of a CUDA graph under a guard; its report: ok={guard.report.ok}"


def _plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad(set_to_none=False)
    model(x).square().mean().backward()
    optimizer.step()


def compiled_code_leaves_it_alone() -> str:
    model = net()
    part = fl.freeze(model, "0")
    before = bits(part)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model.train()
        step(compiled, optimizer)
    assert bits(part) == before
    return "Inductor, 3 steps"


# --- the seal and the guard --------------------------------------------------------------------


def a_write_is_named_and_manifests_are_those_of_the_cpu() -> str:
    model = zoo.ZOO["resnet18"].build()
    on_cpu = fl.manifest(copy.deepcopy(model))
    part = fl.freeze(model.to(DEVICE))
    assert fl.manifest(model) == on_cpu
    assert fl.digest(part) == fl.digest(model)
    assert part.changes() == []
    seen = []
    for name in list(part.tensors)[::17]:
        tensor = part.tensors[name]
        with torch.no_grad():
            flat, old = tensor.view(-1), tensor.view(-1)[-1].clone()
            flat[-1] += 1
            assert [change.name for change in part.changes()] == [name]
            flat[-1] = old
        seen.append(name)
    assert part.changes() == []
    assert fl.manifest(model.cpu()) == on_cpu
    return f"resnet18: one element of {len(seen)} tensors, each named; manifest as on the CPU"


def the_guard_sees_a_write() -> str:
    model = net()
    part = fl.freeze(model, "0")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with fl.guard(part, proof="content") as guard:
            for i in range(30):
                step(model, optimizer)
                if i == 10:
                    part.tensors["0.4.running_var"].data[3] += 1
    except fl.errors.FrozenStateChanged as error:
        change = error.changes[0]
        assert change.name == "0.4.running_var"
        return f"{change.name}, written at step 11, raised at step {change.step}"
    raise AssertionError(str(guard.report))


def the_guard_finds_nothing_where_nothing_is() -> str:
    model = net()
    part = fl.freeze(model, "0")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.guard(part) as guard:
        for _ in range(30):
            step(model, optimizer)
    assert guard.report.ok
    return f"{guard.report.steps} steps"


# --- exact windows -----------------------------------------------------------------------------


def on_gpu(case: Case) -> Case:
    def prepare(model: nn.Module) -> None:
        case.prepare(model)
        model.to(DEVICE)

    return replace(
        case, batch=lambda: each_tensor(lambda t: t.to(DEVICE), case.batch()), prepare=prepare
    )


def exact_windows_are_the_big_batch() -> str:
    """In float64, within four times the big batch's distance from itself."""
    worst, missed = 0.0, []
    for name in NAMES:
        case = on_gpu(CASES[name])
        true, noise = truth(case)
        for offload in OFFLOADS:
            sizes = even(size_of(case.batch()), 4)
            error = distance(run(case, partial(fl.accumulate, offload=offload), sizes), true)
            worst = max(worst, error.gradients)
            if any(a > TIMES_NOISE * b for a, b in zip(error.kinds, noise.kinds, strict=True)):
                missed.append(f"{name}, offload={offload}: error {error}, noise {noise}")
    assert not missed, "\n".join(missed)
    return f"{len(NAMES)} nets, offload None, cpu, disk: gradients at most {worst:.1e} off"


def exact_windows_under_autocast_are_as_good_as_the_big_batch() -> str:
    """Bfloat16 autocast, as near to float64 as the big batch under it, times three."""
    missed = []
    for name in SWEPT:
        case = on_gpu(CASES[name])
        mixed = replace(case, loss=_under_autocast(case))
        own = own_error(mixed, torch.float32, case)
        for offload in OFFLOADS:
            sizes = even(size_of(case.batch()), 4)
            found = run(mixed, partial(fl.accumulate, offload=offload), sizes, torch.float32)
            error = distance(found, truth(case)[0])
            if any(a > 3 * b for a, b in zip(error.kinds, own.kinds, strict=True)):
                missed.append(f"{name}, offload={offload}: error {error}, own {own}")
    assert not missed, "\n".join(missed)
    return f"{len(SWEPT)} nets, offload None, cpu, disk"


def _under_autocast(case: Case) -> Callable[[nn.Module, Any], Tensor]:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return case.loss(model, batch)

    return loss


def recalibration_is_one_forward_of_the_set() -> str:
    model = zoo.ZOO["resnet18"].build().double().to(DEVICE)
    x = torch.randn(24, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    other = copy.deepcopy(model)
    result = fl.recalibrate(model, list(x.split(8)), samples=None)
    other.eval()
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = 1.0
    with torch.no_grad():
        other(x)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    return str(result.waiting)


FACTS: tuple[Callable[[], str], ...] = (
    recurrent_layers_go_backward_while_held,
    norms_stay_in_bits_under_autocast,
    optimizers_of_gpus_leave_it_alone,
    a_write_is_named_and_manifests_are_those_of_the_cpu,
    the_guard_sees_a_write,
    the_guard_finds_nothing_where_nothing_is,
    exact_windows_are_the_big_batch,
    exact_windows_under_autocast_are_as_good_as_the_big_batch,
    recalibration_is_one_forward_of_the_set,
    a_captured_step_leaves_it_alone,
    compiled_code_leaves_it_alone,
)


def looked_at(fact: Callable[[], str]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        found = {"holds": True, "seen": fact()}
    except Exception as error:  # one that does not hold keeps no other from being looked at
        traceback.print_exc()
        found = {"holds": False, "seen": f"{type(error).__name__}: {error}"[:2000]}
    what = fact.__name__.replace("_", " ")
    return {"what": what, **found, "seconds": round(time.perf_counter() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="facts whose names have this word")
    parser.add_argument("--json", type=Path, default=PATH)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("not run: torch.cuda is not available here; this needs a GPU")
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    head = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    found = []
    for fact in FACTS:
        if arguments.only in fact.__name__:
            found.append(looked_at(fact))
            print(found[-1], flush=True)
            arguments.json.write_text(json.dumps({**head, "facts": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
