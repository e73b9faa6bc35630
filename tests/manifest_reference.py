"""The manifest format again, from its document alone: numpy and blake3, no torch, no frostline.

It exists to disagree. Keep it independent of the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from blake3 import blake3


def canonical(value: object) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def content(array: np.ndarray) -> bytes:
    """Row-major little-endian bytes; array.flat walks logical order whatever the strides are."""
    little = array.dtype.newbyteorder("<")
    return b"".join(element.astype(little).tobytes() for element in array.flat)


def tensor_digest(description: Mapping[str, Any], data: bytes) -> str:
    header = canonical(description)
    length = len(header).to_bytes(8, "little")
    return "blake3:" + blake3(b"frostline/tensor/1\n" + length + header + data).hexdigest()


def dense_digest(array: np.ndarray, dtype: str | None = None) -> str:
    """Digest of a dense tensor; `dtype` names a type that numpy lacks, given by its raw words."""
    description = {"dtype": dtype or array.dtype.name, "shape": list(array.shape)}
    return tensor_digest(description, content(array))


def root(entries: Sequence[Mapping[str, Any]]) -> str:
    state = blake3(b"frostline/manifest/1\n")
    for entry in sorted(entries, key=lambda entry: entry["name"].encode("utf-8")):
        line = [entry["name"], entry["dtype"], entry["shape"], entry["digest"]]
        state.update(canonical(line) + b"\n")
    return "blake3:" + state.hexdigest()
