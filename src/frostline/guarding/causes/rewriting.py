"""Writes by a call that somebody made: loads, casts, averages, merged adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from frostline._content import dtype_name
from frostline._state import same_bits
from frostline.guarding import local
from frostline.guarding.causes.evidence import Load, TensorEvidence, fingerprint, places
from frostline.guarding.causes.verdicts import Pair, Scene, Verdict, covers, owner_name

_SEAL = "if that was meant: load before the guard begins, or part.seal() after it"
_NARROW = (torch.bfloat16, torch.float16, torch.float32)
_FEW = 8  # elements from which on an exact rounding is no accident


def cast(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """A cast, or a cast there and back: exactly the bytes that rounding leaves."""
    pair = scene.pair(e)
    if pair is None:
        return _unproved_cast(e, scene)
    if not (pair.old.is_floating_point() and pair.new.is_floating_point()):
        return None
    if pair.old.dtype != pair.new.dtype:
        through = pair.new.dtype if same_bits(pair.old.to(pair.new.dtype), pair.new) else None
    else:
        through = _there_and_back(pair, was_heard=_conversion(e, scene) is not None)
    return _cast(e, scene, pair, through) if through is not None else None


def _there_and_back(pair: Pair, *, was_heard: bool) -> torch.dtype | None:
    was = pair.old.dtype
    enough = len(pair.old) >= _FEW or (len(pair.old) > 1 and bool(pair.differ.all()))
    if not (enough or was_heard) or not bool(pair.differ.any()):
        return None
    narrower = (d for d in _NARROW if d.itemsize < was.itemsize)
    return next((d for d in narrower if same_bits(pair.old.to(d).to(was), pair.new)), None)


def _unproved_cast(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """A cast was called, no old value is left, and the new ones are such as a cast leaves."""
    where = _conversion(e, scene)
    if where is None or e.tensor is None or not e.tensor.is_floating_point():
        return None
    now = local.of(e.tensor).detach()
    narrower = (d for d in _NARROW if d.itemsize < now.dtype.itemsize)
    narrow = now.dtype.itemsize < 4
    if now.numel() < _FEW or not (narrow or any(_survives(now, d) for d in narrower)):
        return None
    text = f"{{}} was cast at {where}; no old value was kept, so whether more happened is not known"
    return Verdict("cast", e.name, text)


def _survives(now: Tensor, dtype: torch.dtype) -> bool:
    return now.layout is torch.strided and same_bits(now.to(dtype).to(now.dtype), now)


def _conversion(e: TensorEvidence, scene: Scene) -> str | None:
    where = [c.where for c in scene.window.conversions if covers(c.module, e.owner)]
    return where[-1] if where else None


def _cast(e: TensorEvidence, scene: Scene, pair: Pair, through: torch.dtype) -> Verdict:
    where = _conversion(e, scene)
    at = f" at {where}" if where is not None else ""
    seen = "every value is" if pair.whole else f"{len(pair.old)} values that were kept are"
    was, now = dtype_name(pair.old.dtype), dtype_name(pair.new.dtype)
    if was != now:
        text = f"{{}} was cast from {was} to {now}{at}; {seen} just rounded"
    else:
        text = f"{{}} was cast to {dtype_name(through)} and back to {now}{at}; {seen} just rounded"
    # Of values that were not kept nobody can say that they were only rounded.
    return Verdict("cast", e.name, text, None, "report" if pair.whole else "drift")


def load(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """A ``load_state_dict`` that brought what is there now."""
    for event, key in loads_over(e, scene):
        if _explains(event, key, e, scene):
            text = f"load_state_dict at {event.where} loaded other values into {{}}"
            return Verdict("load", e.name, text, _SEAL)
    return None


def loads_over(e: TensorEvidence, scene: Scene) -> Iterator[tuple[Load, str]]:
    """Loads that had a value for this tensor, the last one first, and under which key."""
    for event in reversed(scene.window.loads):
        for key in _keys(event.module, e):
            if key in event.keys:
                yield event, key


def _keys(module: nn.Module, e: TensorEvidence) -> Iterator[str]:
    for name, inner in module.named_modules(remove_duplicate=False):
        if inner is e.owner:
            yield f"{name}.{e.attribute}" if name else e.attribute
    # A tied tensor hangs at several places, and any of them may have been loaded.
    for name, entry in module.named_parameters(remove_duplicate=False):
        if entry is e.tensor:
            yield name


def _explains(event: Load, key: str, e: TensorEvidence, scene: Scene) -> bool:
    if e.version_moved is False and not e.replaced and not e.pointer_moved:
        return False  # loading copies, and a copy moves the version counter
    known = event.keys[key] if isinstance(event.keys, Mapping) else None
    if known is None or e.tensor is None or e.tensor.layout is not torch.strided:
        return True
    now = fingerprint(local.of(e.tensor))
    if now is None:
        return True
    if len(known) != len(now) or not same_bits(known.to(now.dtype), now):
        return False
    before = scene.pair(e)
    if before is None or not before.whole:
        return True
    was = before.old[places(len(before.old))]
    return not same_bits(was, now) or not _sparse(before)


def _sparse(pair: Pair) -> bool:
    """Whether so little changed that a load of what was there would look the same."""
    return float(pair.differ.double().mean()) < 0.5


def averaging(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """An ``AveragedModel`` that counted an update while its average moved."""
    for other in scene.evidences:
        model = other.owner
        if other.attribute == "n_averaged" and isinstance(model, AveragedModel):
            if not covers(model, e.owner):
                continue
            text = "update_parameters() of an AveragedModel wrote its average into {}"
            return Verdict("averaging", e.name, text, "leave the average out of the guard")
    return None


def merging(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """An adapter added into the weight, or added and taken out again."""
    adapter = next((m for m in (e.owner, scene.above(e)) if m is not None and _adapts(m)), None)
    pair = scene.pair(e)
    if adapter is None or pair is None or not pair.new.is_floating_point():
        return None
    old, new = pair.wide
    delta, eps = new - old, torch.finfo(pair.new.dtype).eps
    if bool(delta.abs().max() <= 32 * eps * old.abs().max()):
        text = "an adapter was merged into {} and taken out again, which rounds"
    elif _is_product(adapter, e, pair, delta):
        text = "an adapter is merged into {}, or was taken out of it"
    else:
        return None
    mend = "keep a copy of the weight and put that back, or do not merge while training"
    return Verdict("merge and unmerge", owner_name(e), text, mend)


def _adapts(module: nn.Module) -> bool:
    factors = hasattr(module, "lora_A") and hasattr(module, "lora_B")
    return factors or (hasattr(module, "merge") and hasattr(module, "unmerge"))


def _is_product(adapter: nn.Module, e: TensorEvidence, pair: Pair, delta: Tensor) -> bool:
    """Whether the change points where the product of the factors does."""
    assert e.tensor is not None  # noqa: S101
    products = [b @ a for a, b in _factors(adapter)]
    fitting = [p for p in products if p.shape == e.tensor.shape]
    if not fitting:
        return False
    joined = sum(fitting[1:], fitting[0]).detach().cpu().double().reshape(-1)
    if not pair.whole and e.sample is not None:
        joined = joined[e.sample[0]]
    likeness = nn.functional.cosine_similarity(joined, delta, dim=0)
    return bool(likeness.abs() > 0.99)


def _factors(adapter: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    a, b = getattr(adapter, "lora_A", None), getattr(adapter, "lora_B", None)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        yield a, b
    elif isinstance(a, nn.ModuleDict) and isinstance(b, nn.ModuleDict):
        for name in a:
            pair = [getattr(factors[name], "weight", None) for factors in (a, b) if name in factors]
            if len(pair) == 2 and isinstance(pair[0], Tensor) and isinstance(pair[1], Tensor):
                yield pair[0], pair[1]
