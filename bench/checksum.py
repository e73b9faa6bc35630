"""Throughput of the seal on CPU memory: `python bench/checksum.py [--mb 512] [--rounds 7]`.

Each round runs a plain read (the sum of an int64 view), a copy into memory that exists, and the
checksum, one after the other, so that whatever else the machine does hits all three. Reported are
medians over the rounds of the ratios within a round; the raw samples go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from frostline.checksums import checksum


def measure(size: int, rounds: int) -> dict[str, list[float]]:
    """Bytes per second of each way, by round."""
    weights = torch.randn(size // 4)
    words, target = weights.view(torch.int64), torch.zeros(size // 4)
    ways: dict[str, Callable[[], object]] = {
        "read": words.sum,
        "copy": lambda: target.copy_(weights),
        "checksum": lambda: checksum(weights, key=7),
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:  # the first round touches the memory and imports
                samples[name].append(size / (time.perf_counter() - start))
    return samples


def ratio(samples: dict[str, list[float]], way: str, base: str) -> float:
    """Median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(samples[way], samples[base], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-load", type=float, default=1.0, help="refuse above this load")
    parser.add_argument("--json", type=Path, help="write the raw samples here")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > options.max_load:
        raise SystemExit(f"load is {load:.1f}, more than {options.max_load}: measure when quiet")
    torch.set_num_threads(1)
    samples = measure(options.mb << 20, options.rounds)
    result = {
        "bytes": options.mb << 20,
        "load": load,
        "torch": torch.__version__,
        "bytes_per_second": samples,
        "checksum_to_read": ratio(samples, "checksum", "read"),
        "checksum_to_copy": ratio(samples, "checksum", "copy"),
    }
    for name, values in samples.items():
        print(f"{name:<9} {statistics.median(values) / 1e9:6.2f} GB/s")
    print(f"checksum / read {result['checksum_to_read']:.2f}  (target: at least 0.5)")
    print(f"checksum / copy {result['checksum_to_copy']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
