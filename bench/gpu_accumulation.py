"""Exact accumulation on a GPU: ResNet-50 at 224, BatchNorm windows in microbatches of 32.

    python bench/gpu_accumulation.py [--settings 0 1 ..] [--ways ..] [--host 120] [--again]
    python bench/gpu_accumulation.py --tell | --page | --check

Asked for: a window of 1,024 in at most 1.3 times the device memory of batch 32, and gradients,
statistics and loss as near to the real big batch as that is to itself, times four (its samples in
five other orders). Beside it the big batch under `torch.autograd.graph.save_on_cpu`, and what
`offload="auto"` takes with 60 %, with 25 % of the big batch's memory and with 1.3 times batch 32's.

Each way runs a window twice (those of `auto` with a limit once): memory is the larger peak of
`torch.cuda.max_memory_allocated`, less the model; time that of the last window. Tensor cores are
off (no TF32). Samples are added to bench/results/gpu_accumulation.json as they come, and one that
is there is not taken again. Where the big batch does not fit, errors are told against that under
`save_on_cpu`, which is the same arithmetic. `save_on_cpu` is not run where it needs more of the
host's memory than there is, or than `--host` GB, and the sample says so. `--page` writes
bench/RESULTS-gpu.md from the samples, `--check` only looks whether it is up to date.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import _gpu_page as page
from bench import _gpu_ways as ways
from bench._accumulate_models import CLASSES, resnet50
from bench._fresh import Kept, Sample
from bench._gpu_page import BIG, KEYS, MOST, NOISE, OURS, PATH, PLAIN
from tests import zoo
from tests.accumulation.exact.truth import PERMUTATIONS, Distance, Outcome, distance

LEAST = 1.3e9  # bytes of memory that other programs of the host keep


@dataclass(frozen=True)
class Setting:
    """A window, the dtype of all ways, and what else is looked at.

    Attributes:
        truth: errors are told against the big batch in float64, too.
        limits: also ``auto`` with limits, and ``save_on_cpu``.
    """

    window: int
    dtype: str = "float32"
    truth: bool = False
    limits: bool = True
    microbatch: int = 32
    side: int = 224


SETTINGS = (
    Setting(128, "float64", limits=False),
    Setting(128, truth=True, limits=False),
    Setting(512),
    Setting(1024, truth=True),
)
SMALL = Setting(8, truth=True, microbatch=2, side=64)  # only to see that the program runs


class Bench:
    """All ways at one setting.

    Args:
        setting: of the window.
        kept: where samples go.
        arguments: of the command line.
    """

    def __init__(self, setting: Setting, kept: Kept, arguments: argparse.Namespace) -> None:
        self._setting, self._kept, self._arguments = setting, kept, arguments
        torch.manual_seed(0)
        self._model = zoo.live(resnet50()).train().to(arguments.device)
        self._state = {name: t.to("cpu", copy=True) for name, t in self._model.state_dict().items()}
        draw = torch.Generator().manual_seed(1)
        shape = setting.window, 3, setting.side, setting.side
        images = torch.randn(shape, generator=draw) * 1.5 + 0.4
        self._batch = images, torch.randint(CLASSES, shape[:1], generator=draw)
        self._truth: Outcome | None = None
        self._as_big = ways.big_batch

    def run(self) -> None:
        self._big = self._big_batch()
        if self._setting.truth:
            # Its blocks run again where it does not fit: the same arithmetic.
            most = 0.9 * torch.cuda.mem_get_info()[0]
            self._truth = self._reference("float64", ways.exact("auto", most))
        self._take(PLAIN, ways.plain)
        self._take(BIG, ways.big_batch)
        self._noise()
        self._take(OURS, ways.exact("cpu"))
        self._take_auto('exact, offload="auto"', None)
        if self._setting.limits:
            self._run_limits()

    def _run_limits(self) -> None:
        big, small = (self._kept_of(way).get("peak") for way in (BIG, PLAIN))
        for share in (0.6, 0.25) if big else ():
            way = f"exact, auto in {share:.0%} of the big batch's"
            self._take_auto(way, share * big)
        if small:
            way = f"exact, auto in {MOST} x batch {self._setting.microbatch}'s"
            self._take_auto(way, MOST * small)
        for name, pinned in (("", False), (", pinned", True)):
            self._take_saved_on_cpu(f"big batch, save_on_cpu{name}", pinned=pinned)

    def _take_saved_on_cpu(self, way: str, *, pinned: bool) -> None:
        if self._has(way):
            return
        self._fresh(self._setting.dtype)
        need = ways.bytes_on_cpu(self._window(self._setting.dtype), pinned=pinned)
        if need > self._arguments.host * 1e9:
            there = f"{self._arguments.host:.0f} GB"
            self._add(way, {"failed": f"not run: needs {need / 1e9:.0f} GB of the host's {there}"})
        else:
            self._take(way, ways.saved_on_cpu(pinned=pinned))

    def _big_batch(self) -> Outcome:
        """Under ``save_on_cpu`` where it does not fit."""
        try:
            return self._reference(self._setting.dtype, self._as_big)
        except torch.OutOfMemoryError:
            self._as_big = ways.saved_on_cpu(pinned=False)
        ways.empty_caches()
        return self._reference(self._setting.dtype, self._as_big)

    def _reference(self, dtype: str, run: ways.Run) -> Outcome:
        self._fresh(dtype)
        return ways.left_behind(self._model, run(self._window(dtype)))

    def _noise(self) -> None:
        """How far the big batch is from itself, its samples in five other orders."""
        if self._has(NOISE):
            return
        draw = torch.Generator().manual_seed(17)
        epsilon = torch.finfo(getattr(torch, self._setting.dtype)).eps
        least = asdict(Distance(epsilon, epsilon, epsilon, 0.0))
        found = dict.fromkeys(self._errors(self._big), least)
        for _ in range(PERMUTATIONS):
            order = torch.randperm(self._setting.window, generator=draw)
            self._fresh(self._setting.dtype)
            window = self._window(self._setting.dtype, order)
            errors = self._errors(ways.left_behind(window.model, self._as_big(window)))
            for against, error in errors.items():
                found[against] = {k: max(v, error[k]) for k, v in found[against].items()}
        self._add(NOISE, found)

    def _errors(self, found: Outcome) -> dict[str, dict[str, float]]:
        errors = {"error": asdict(distance(found, self._big))}
        if self._truth is not None:
            errors["error_of_float64"] = asdict(distance(found, self._truth))
        return errors

    def _take_auto(self, way: str, memory: float | None) -> None:
        if not self._has(way):
            self._fresh(self._setting.dtype)
            chosen = ways.chosen(self._window(self._setting.dtype), memory)
            self._take(way, ways.exact("auto", memory), 1 if memory else 2, chosen=chosen)

    def _take(self, way: str, run: ways.Run, windows: int = 2, **more: str) -> None:
        if self._has(way):
            return
        try:
            self._add(way, self._measured(run, windows) | more)
        except RuntimeError as error:  # what there is not enough memory for, above all
            self._add(way, {"failed": f"{type(error).__name__}: {str(error)[:300]}"})

    def _measured(self, run: ways.Run, windows: int) -> Sample:
        ways.empty_caches()
        taken = []
        for _ in range(windows):
            self._fresh(self._setting.dtype)
            loss, found = ways.timed(run, self._window(self._setting.dtype))
            taken.append(found)
        return {
            "peak": max(one["peak"] for one in taken),
            "seconds": taken[-1]["seconds"],
            "loss": float(loss),
            **self._errors(ways.left_behind(self._model, loss)),
            "windows": taken,
        }

    def _fresh(self, dtype: str) -> None:
        self._model.to(getattr(torch, dtype)).load_state_dict(self._state)
        self._model.zero_grad()

    def _window(self, dtype: str, order: torch.Tensor | None = None) -> ways.Window:
        images, labels = self._batch if order is None else [t[order] for t in self._batch]
        batch = images.to(getattr(torch, dtype)), labels
        return ways.Window(self._model, batch, self._setting.microbatch)

    # --- samples -------------------------------------------------------------------------------

    def _named(self, way: str) -> Sample:
        return {key: getattr(self._setting, key) for key in KEYS[:-1]} | {"way": way}

    def _has(self, way: str) -> bool:
        """It was taken, or is not asked for."""
        wanted = (*self._arguments.ways, PLAIN, BIG) if self._arguments.ways else (way,)
        there = not self._arguments.again and self._kept.has(self._named(way))
        return there or way not in wanted

    def _kept_of(self, way: str) -> Sample:
        named = self._named(way)
        return next(s for s in self._kept.read() if all(s[key] == named[key] for key in KEYS))

    def _add(self, way: str, found: Sample) -> None:
        sample = self._named(way) | found
        self._kept.add(sample)
        print(f"{self._setting.window} {self._setting.dtype} {page.line(sample)}", flush=True)


def _head() -> dict[str, Any]:
    found = {"torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available():
        found |= {
            "device": torch.cuda.get_device_name(),
            "device_bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found | {"date": time.strftime("%Y-%m-%d"), "tf32": False}


def _available() -> float:
    """GB of the host's memory that can still be taken."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = next(line for line in lines if line.startswith("MemAvailable:"))
    return (int(found.split()[1]) * 1024 - LEAST) / 1e9


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", nargs="+", type=int, default=[*range(len(SETTINGS))])
    parser.add_argument("--ways", nargs="+", help="all by default")
    parser.add_argument("--host", type=float, help="GB of host memory that may be used")
    parser.add_argument("--json", type=Path, default=PATH)
    parser.add_argument("--small", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--again", action="store_true", help="take samples again that are there")
    parser.add_argument("--tell", action="store_true", help="measure nothing, show what is stored")
    parser.add_argument("--page", action="store_true", help="write RESULTS-gpu.md from what is")
    parser.add_argument("--check", action="store_true", help="exit with 1 if that is stale")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    if arguments.tell or arguments.page or arguments.check:
        page.show(arguments.json, write=arguments.page, check=arguments.check)
        return
    if not torch.cuda.is_available():
        # No error: `make bench` goes on with the other programs.
        print("not run: torch.cuda is not available here; this needs a GPU (--tell shows figures)")
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    arguments.device, arguments.host = "cuda", arguments.host or _available()
    kept = Kept(arguments.json, KEYS, _head())
    for setting in [SMALL] if arguments.small else [SETTINGS[i] for i in arguments.settings]:
        Bench(setting, kept, arguments).run()
    page.tell(arguments.json)


if __name__ == "__main__":
    main()
