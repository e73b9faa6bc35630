"""Ways of checking that a model did not change: the columns of "who catches what".

A way of checking looks at the model before, and gives a function that tells afterwards whether it
sees a change. Everything is used as its own documentation says, with its default settings.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._debug_mode import DebugMode

import frostline as fl
from frostline.checksums import checksum
from tests.guarding.who_catches_changes import Change, Live
from tests.guarding.who_catches_tiers import TIERS

T = TypeVar("T")
Watch = Callable[[Live], Callable[[], bool]]

RIGHT = {"yes", "silent"}
WORDS = {
    "yes": "there was a change, and it is seen",
    "MISS": "there was a change, and it is not seen",
    "yes*": "it is seen, but the same alarm comes when nothing was changed at all",
    "silent": "nothing was changed, and nothing is said",
    "false alarm": "nothing was changed, and a change is reported",
    "crash": "an error that has nothing to do with the question",
    "not installed": "the package could not be installed",
}


def by_value(take: Callable[[Live], Any]) -> Watch:
    """Compare what is taken before with what is taken after."""

    def watch(live: Live) -> Callable[[], bool]:
        before = take(live)
        return lambda: bool(take(live) != before)

    return watch


def with_copies(same: Callable[[torch.Tensor, torch.Tensor], bool]) -> Watch:
    """Keep a copy of every tensor, and compare by name."""

    def watch(live: Live) -> Callable[[], bool]:
        copies = {name: t.detach().clone() for name, t in live.tensors().items()}
        return lambda: not all(same(copies[n], t.detach()) for n, t in live.tensors().items())

    return watch


def close(before: torch.Tensor, after: torch.Tensor) -> bool:
    try:
        torch.testing.assert_close(after, before)
    except AssertionError:
        return False
    return True


def versions(live: Live) -> Callable[[], bool]:
    held = live.tensors()
    before = {name: tensor._version for name, tensor in held.items()}
    return lambda: any(tensor._version != before[name] for name, tensor in held.items())


def debug_mode(live: Live) -> Callable[[], bool]:
    def logs() -> list[Any]:
        with DebugMode() as mode, DebugMode.log_tensor_hashes(hash_inputs=True):
            for tensor in live.tensors().values():
                tensor.detach().clone()
        return list(mode.logs)

    before = logs()
    return lambda: bool(DebugMode.check_hash_mismatches(before, logs(), compare_inputs=True))


def file_digest(live: Live) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        live.save(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_tensors(live: Live) -> dict[str, int]:
    return {n: int(torch.hash_tensor(t.detach()).item()) for n, t in live.tensors().items()}


def megatron(live: Live) -> dict[str, str]:
    """As `check_param_hashes_across_dp_replicas` is described: SHA-1 of parameters as float32."""
    parameters = live.model.named_parameters()
    return {n: hashlib.sha1(p.detach().float().numpy()).hexdigest() for n, p in parameters}


def traincheck(live: Live) -> dict[str, int]:
    """As TrainCheck's `tensor_hash` is described: values times 1e8 as integers, the first row."""
    return {n: _first_row(t.detach()) for n, t in live.tensors().items() if t.dim()}


def _first_row(tensor: torch.Tensor) -> int:
    whole = (tensor * 1e8 if tensor.is_floating_point() else tensor).to(torch.int64)
    total = 0
    for value in whole.reshape(-1, whole.shape[-1])[0].tolist():
        total = (total * 6364136223846793005 + value + 1) % 2**64
    return total


def checksums(live: Live) -> dict[str, object]:
    return {name: checksum(tensor, 7, name) for name, tensor in live.tensors().items()}


OTHERS: dict[str, Watch] = {
    "torch.equal": with_copies(torch.equal),
    "assert_close": with_copies(close),
    "hash_tensor": by_value(hash_tensors),
    "_version": versions,
    "DebugMode": debug_mode,
    "sha256 of the file": by_value(file_digest),
    "Megatron¹": by_value(megatron),
    "TrainCheck¹": by_value(traincheck),
}
OWN: dict[str, Watch] = {
    "frostline checksum": by_value(checksums),
    "fl.digest": by_value(lambda live: fl.digest(live.model)),
}


def tier_columns() -> dict[str, Watch]:
    """The tiers of the guard, each alone; not among OWN, since one tier need not see everything."""
    return dict(TIERS)


def columns() -> dict[str, Watch]:
    return OTHERS | tier_columns() | OWN


class CheckCrashed(Exception):
    """The way of checking raised; what raises elsewhere is our own mistake."""


@torch.no_grad()
def sees(watch: Watch, change: Change) -> bool:
    """Whether a way of checking reports a change."""
    with tempfile.TemporaryDirectory() as folder:
        live = Live(Path(folder), change.with_nan, change.mapped)
        look = _guarded(lambda: watch(live))
        change.do(live)
        return _guarded(look)


def _guarded(call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:
        raise CheckCrashed(repr(error)) from error


def verdict(changed: bool, seen: bool, seen_anyway: bool) -> str:
    """The word for a cell; `seen_anyway` is what is reported of a model that nobody touched."""
    if not changed:
        return "false alarm" if seen else "silent"
    if not seen:
        return "MISS"
    return "yes*" if seen_anyway else "yes"


@cache
def sees_anyway(column: str, with_nan: bool, mapped: bool) -> bool:
    """Whether a way of checking reports a change in a model that nobody touched."""
    nothing = Change("nothing", lambda live: None, False, with_nan, mapped)
    return sees(columns()[column], nothing)


@cache
def cell(column: str, change: Change) -> str:
    try:
        anyway = sees_anyway(column, change.with_nan, change.mapped)
        return verdict(change.changed, sees(columns()[column], change), anyway)
    except CheckCrashed:
        return "crash"
