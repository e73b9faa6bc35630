# ruff: noqa: T201  (a command that prints)
"""Who holds what, and who gives the big batch: compute all cells, write JSON and pages.

python -m tests.peers            # run by `make peers`: five to ten minutes
python -m tests.peers --only accumulation
python -m tests.peers --check    # computes nothing: do the pages show what is stored?

Pages: docs/peers.md and README.md from peers.json, docs/peers-accumulation.md from
accumulation.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

# As in tests/conftest.py: before a hub client is imported, and before timm is.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from tests import _torchvision

_torchvision.install()

from tests.peers import accumulation, accumulation_page, pages, results  # noqa: E402
from tests.peers.matrix import ACTIONS, HOLDS, Outcomes, computed  # noqa: E402
from tests.peers.ways import WAYS, Way  # noqa: E402


def told(way: Way) -> dict[str, Outcomes]:
    """Compute a way and print a line of it."""
    start = time.perf_counter()
    rows = computed(way)
    outcomes = [outcome for action in ACTIONS for outcome in rows[action].values()]
    took = time.perf_counter() - start
    print(f"{way.name:<20}{outcomes.count(HOLDS):>4} of {len(outcomes)} hold  {took:5.1f} s")
    return rows


def freezing() -> None:
    results.write({name: told(way) for name, way in WAYS.items()})


COMPUTE = {"freezing": freezing, "accumulation": accumulation.write}


def write(only: str | None) -> None:
    for what in [only] if only else COMPUTE:
        COMPUTE[what]()
    wanted = pages.wanted() | accumulation_page.wanted()
    for path, text in wanted.items():
        path.write_text(text)
        if not pages.marked(text):
            print(f"{path.name}: not written, it has no {pages.START} and {pages.END}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Who holds what, and who gives the big batch.")
    parser.add_argument("--check", action="store_true", help="compute nothing, compare the pages")
    parser.add_argument("--only", choices=COMPUTE, help="compute one of the two")
    arguments = parser.parse_args()
    if not arguments.check:
        torch.set_num_threads(1)
        write(arguments.only)
    elif stale := pages.stale() + accumulation_page.stale():
        sys.exit(f"stale: {', '.join(stale)}; run make peers")


if __name__ == "__main__":
    main()
