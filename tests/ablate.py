# ruff: noqa: T201  (a command that prints)
"""Turn every mechanism of the hold off, one at a time, and demand that its tests fail.

Run by `make ablate`. torch is imported once; every mechanism gets a forked child of its own. A
mechanism whose tests do not all fail is a survivor: nothing would tell if it were lost.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.ablations import ABLATIONS, Ablation  # noqa: E402  (torch comes first)

AT_ONCE = 2
# What the tests would load in each child anew.
PRELOADED = ("torch._dynamo", "torch.ao.quantization", "transformers.modeling_layers")


class Run(NamedTuple):
    """What became of the named tests: their outcomes, and what pytest printed."""

    outcomes: dict[str, str]
    text: str


class Outcomes:
    """A pytest plugin that writes a line for each test: its outcome and its id."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test that cannot even be set up has shown nothing.
        if report.when == "call" or report.failed:
            outcome = report.outcome if report.when == "call" else "error"
            with self._path.open("a") as file:
                file.write(f"{outcome} {report.nodeid}\n")


def run_in_child(tests: Iterable[str], turn_off: Callable[[], None], folder: Path) -> int:
    """Start the tests in a forked child; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        with (folder / "text").open("w") as text:
            os.dup2(text.fileno(), 1)
            os.dup2(text.fileno(), 2)
        turn_off()
        quiet = ["-q", "-p", "no:cacheprovider", "--tb=short"]
        pytest.main([*quiet, *tests], plugins=[Outcomes(folder / "outcomes")])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not exit(): what the parent has opened and registered is the parent's.
        os._exit(0)


def read(folder: Path) -> Run:
    """What the child in this folder left behind."""
    outcomes = folder / "outcomes"
    lines = outcomes.read_text().splitlines() if outcomes.exists() else []
    found = dict(reversed(line.split(" ", 1)) for line in lines)
    return Run(found, (folder / "text").read_text())


def run_all(jobs: list[tuple[tuple[str, ...], Callable[[], None]]], scratch: Path) -> list[Run]:
    """Run all jobs, a few at once, each in its own child."""
    folders = [scratch / str(number) for number in range(len(jobs))]
    running: set[int] = set()
    for folder, (tests, turn_off) in zip(folders, jobs, strict=True):
        folder.mkdir()
        if len(running) == AT_ONCE:
            running.discard(os.wait()[0])
        running.add(run_in_child(tests, turn_off, folder))
    while running:
        running.discard(os.wait()[0])
    return [read(folder) for folder in folders]


def verdict(ablation: Ablation, run: Run) -> str:
    """What the run says about the tests of a mechanism that was off."""
    outcomes = {run.outcomes.get(test, "not run") for test in ablation.tests}
    if outcomes == {"failed"}:
        return "caught"
    return "survived" if "passed" in outcomes else "broken"


def nothing() -> None:
    """Leave every mechanism on."""


def intact(scratch: Path) -> bool:
    """Whether the tests pass as long as nothing is off."""
    tests = tuple(sorted({test for ablation in ABLATIONS for test in ablation.tests}))
    (run,) = run_all([(tests, nothing)], scratch)
    bad = [test for test in tests if run.outcomes.get(test) != "passed"]
    if bad:
        print(run.text, *bad, "These must pass before anything is turned off.", sep="\n")
    return not bad


def table(verdicts: list[tuple[Ablation, str]]) -> str:
    """One line for each test of each mechanism, at most 80 columns."""
    lines = [f"{'mechanism':<36} {'test':<32} verdict"]
    for ablation, said in verdicts:
        for test in ablation.tests:
            name = test.rpartition("::")[2].removeprefix("test_")
            shown = name if len(name) <= 32 else name[:31] + "…"
            lines.append(f"{ablation.mechanism:<36} {shown:<32} {said}")
    return "\n".join(lines)


def main() -> int:
    """Ablate everything; 1 if a mechanism survived."""
    started = time.monotonic()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    # Plugins that nothing here needs would be loaded in every child.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for module in PRELOADED:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="frostline-ablate-") as name:
        before, after = Path(name, "intact"), Path(name, "off")
        before.mkdir()
        after.mkdir()
        if not intact(before):
            return 1
        runs = run_all([(a.tests, a.turn_off) for a in ABLATIONS], after)
    verdicts = [(a, verdict(a, run)) for a, run in zip(ABLATIONS, runs, strict=True)]
    print(table(verdicts))
    judged = zip(verdicts, runs, strict=True)
    survivors = [(ablation, run) for (ablation, said), run in judged if said != "caught"]
    for ablation, run in survivors:
        print(f"\n=== {ablation.mechanism}\n{run.text}")
    caught, seconds = len(ABLATIONS) - len(survivors), time.monotonic() - started
    print(f"\n{caught} of {len(ABLATIONS)} mechanisms fail their tests when off ({seconds:.0f} s).")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
