"""A manifest against bare BLAKE3 on the same bytes: `python bench/digest.py [--mb 1024]`.

The model is a stack of linear layers with norms. Bare BLAKE3 hashes one buffer of as many bytes,
with its threads, in one call: the fastest that the library can be asked for. Pairs alternate;
reported is the median of the ratios within a pair; the raw samples go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from blake3 import blake3
from torch import nn

from frostline.manifests import manifest

WIDTH = 2048


def network(size: int) -> nn.Sequential:
    """About `size` bytes in layers of 16 MiB, each followed by a small norm."""
    count = max(1, size // (4 * WIDTH * WIDTH))
    layers = [(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)) for _ in range(count)]
    return nn.Sequential(*(module for pair in layers for module in pair))


def seconds_of_manifest(model: nn.Module) -> float:
    start = time.perf_counter()
    _ = manifest(model).root
    return time.perf_counter() - start


def seconds_of_blake3(data: memoryview) -> float:
    start = time.perf_counter()
    blake3(data, max_threads=blake3.AUTO).digest()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-load", type=float, default=1.0, help="refuse above this load")
    parser.add_argument("--json", type=Path, help="write the raw samples here")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > options.max_load:
        raise SystemExit(f"load is {load:.1f}, more than {options.max_load}: measure when quiet")
    model = network(options.mb << 20)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    data = memoryview(torch.randint(0, 256, (size,), dtype=torch.uint8).numpy())
    seconds_of_manifest(model), seconds_of_blake3(data)  # touch the memory, start the threads
    pairs = [(seconds_of_blake3(data), seconds_of_manifest(model)) for _ in range(options.rounds)]
    speed = statistics.median(bare / ours for bare, ours in pairs)
    bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{size / 1e9:.2f} GB in {len(model.state_dict())} tensors, {os.cpu_count()} cores")
    print(f"blake3    {size / bare / 1e9:6.2f} GB/s")
    print(f"manifest  {size / ours / 1e9:6.2f} GB/s")
    print(f"manifest / blake3 {speed:.2f}  (target: at least 0.8)")
    if options.json:
        result = {"bytes": size, "load": load, "cores": os.cpu_count(), "ratio": speed}
        names = ("blake3_seconds", "manifest_seconds")
        samples = dict(zip(names, zip(*pairs, strict=True), strict=True))
        options.json.write_text(json.dumps(result | samples, indent=1) + "\n")


if __name__ == "__main__":
    main()
