"""Modules that write to their own tensors while they run forward."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from frostline.behaviours.own_code import written_by
from frostline.freezing import holders
from frostline.guarding.causes.evidence import TensorEvidence
from frostline.guarding.causes.verdicts import Pair, Scene, Verdict, owner_name

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_FREEZE = "fl.freeze(model, {})"
_ROUNDING = 1e-5


def statistics(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """Running statistics of norms: a forward in training mode, or a reset."""
    if e.attribute not in STATISTICS or not holders.tracks_statistics(e.owner):
        return None
    if _is_reset(e.owner) or _started_again(e, scene):
        return _reset(e)
    forwards = _forwards(e, scene)
    if forwards:
        return _ran_forward(e, scene, forwards)
    return _instance_norm(e, scene)


def _live(owner: nn.Module, attribute: str) -> Tensor | None:
    return owner._buffers.get(attribute)


def _is_reset(owner: nn.Module) -> bool:
    mean, var = _live(owner, "running_mean"), _live(owner, "running_var")
    counter = _live(owner, "num_batches_tracked")
    if mean is None or var is None or (counter is not None and bool(counter != 0)):
        return False
    return bool((mean == 0).all()) and bool((var == 1).all())


def _started_again(e: TensorEvidence, scene: Scene) -> bool:
    """Whether the counter went back while both statistics changed: reset, then filled again."""
    counter = scene.beside(e).get("num_batches_tracked")
    pair = scene.pair(counter) if counter is not None else None
    return pair is not None and bool(pair.new < pair.old) and _both_moved(e, scene)


def _both_moved(e: TensorEvidence, scene: Scene) -> bool:
    return {"running_mean", "running_var"} <= scene.beside(e).keys()


def _reset(e: TensorEvidence) -> Verdict:
    return Verdict(
        "statistics reset",
        owner_name(e),
        "the running statistics of {} were reset (reset_running_stats, reset_parameters, or "
        "swa_utils.update_bn, which resets every BatchNorm)",
        _FREEZE,
    )


def _forwards(e: TensorEvidence, scene: Scene) -> int:
    """By how much the counter went up."""
    counter = scene.beside(e).get("num_batches_tracked")
    pair = scene.pair(counter) if counter is not None else None
    return max(0, int(pair.new.item()) - int(pair.old.item())) if pair is not None else 0


def _ran_forward(e: TensorEvidence, scene: Scene, forwards: int) -> Verdict | None:
    momentum = _momentum(e.owner)
    still = momentum == 0 and scene.beside(e).keys() == {"num_batches_tracked"}
    if not still and not (_both_moved(e, scene) and _could_be_average(e, scene, forwards)):
        return None
    if _was_copied_into(e, scene):
        return None
    often = "" if forwards == 1 else f" {forwards:,} times"
    return Verdict(
        "running statistics",
        owner_name(e),
        f"{{}} ran forward in training mode{often}; {type(e.owner).__name__} then writes "
        f"{_rule(momentum)}, whatever requires_grad says",
        _FREEZE,
    )


def _was_copied_into(e: TensorEvidence, scene: Scene) -> bool:
    """Whether a norm in eval mode was averaged or copied: its own forward moves no version."""
    mean = scene.beside(e).get("running_mean")
    return not e.owner.training and mean is not None and mean.version_moved is True


def _momentum(owner: nn.Module) -> float | None:
    momentum = vars(owner).get("momentum", 0.1)
    return None if momentum is None else float(momentum)


def _rule(momentum: float | None) -> str:
    if momentum is None:
        return "the average of all batches so far"
    if momentum == 0:
        return "its counter alone, since its momentum is 0"
    return f"{1 - momentum:g} * running + {momentum:g} * batch"


def _could_be_average(e: TensorEvidence, scene: Scene, forwards: int) -> bool:
    """Whether the new variance holds what must be left of the old one: variances add only."""
    var = scene.beside(e).get("running_var")
    pair = scene.pair(var) if var is not None else None
    if pair is None:
        return True
    old, new = pair.wide
    left = old * _share_left(e, scene, forwards)
    return bool((new >= left - _ROUNDING * (1 + left.abs())).all() | new.isnan().any())


def _share_left(e: TensorEvidence, scene: Scene, forwards: int) -> float:
    momentum = _momentum(e.owner)
    if momentum is not None:
        return (1 - momentum) ** forwards
    counter = scene.pair(scene.beside(e)["num_batches_tracked"])
    return float(counter.old / counter.new) if counter is not None else 0.0


def _instance_norm(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """These count nothing, so both statistics must have moved, as an average does."""
    if not isinstance(e.owner, nn.modules.instancenorm._InstanceNorm) or not e.owner.training:
        return None
    if not _both_moved(e, scene) or not _could_be_average(e, scene, 1):
        return None
    return _wrote(e, f"{type(e.owner).__name__} in training mode averages its statistics")


def _wrote(e: TensorEvidence, what: str) -> Verdict:
    return Verdict(
        "self-writing forward", owner_name(e), f"{{}} wrote to itself in its forward: {what}",
        _FREEZE,
    )  # fmt: skip


def spectral_norm(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """The vectors of the power iteration: a forward leaves them at a fixed relation."""
    if isinstance(e.owner, _SpectralNorm):
        both = {"_u", "_v"} <= scene.beside(e).keys()
        done = e.attribute in ("_u", "_v") and both and all(map(_is_unit, e.owner.buffers()))
    else:
        done = e.attribute.endswith(("_u", "_v")) and _is_iterated(e)
    if not done:
        return None
    return _wrote(e, "spectral_norm takes a step of its power iteration in training mode")


def _is_unit(vector: Tensor) -> bool:
    return abs(float(vector.detach().double().norm()) - 1) < 1e-3


def _is_iterated(e: TensorEvidence) -> bool:
    """Whether u is the normalised W v, as after a forward of the old spectral_norm."""
    base, own = e.attribute[:-2], e.owner._buffers
    weight = e.owner._parameters.get(f"{base}_orig")
    u, v = own.get(f"{base}_u"), own.get(f"{base}_v")
    if weight is None or u is None or v is None:
        return False
    hook = next((h for h in e.owner._forward_pre_hooks.values() if hasattr(h, "dim")), None)
    matrix = weight.detach().movedim(hook.dim if hook is not None else 0, 0).flatten(1)
    expected = nn.functional.normalize(torch.mv(matrix, v.detach()), dim=0)
    return torch.allclose(expected, u.detach(), rtol=1e-3, atol=1e-4)


def max_norm(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """Embeddings that shorten the rows that they look up."""
    limit = getattr(e.owner, "max_norm", None)
    if not isinstance(e.owner, nn.Embedding | nn.EmbeddingBag) or limit is None:
        return None
    pair = scene.pair(e)
    if e.attribute != "weight" or pair is None or e.tensor is None:
        return None
    if not _shortened(e, pair, float(limit), e.owner.norm_type):
        return None
    return _wrote(
        e,
        f"{type(e.owner).__name__}(max_norm={limit:g}) shortens the rows that it looks up, in "
        "every mode, whatever requires_grad says",
    )


def _shortened(e: TensorEvidence, pair: Pair, limit: float, order: float) -> bool:
    """Whether every changed row has just the largest length and the direction it had."""
    assert e.tensor is not None  # noqa: S101
    table = e.tensor.detach().cpu().double()
    positions = (
        torch.arange(table.numel(), device="cpu") if e.sample is None or pair.whole else e.sample[0]
    )
    if not bool(pair.differ.any()):
        return False
    rows = (positions[pair.differ] // table.shape[1]).unique()
    at_limit = (table[rows].norm(order, dim=1) - limit).abs() <= 1e-3 * limit
    old, new = (side[pair.differ] for side in pair.wide)
    shorter = (new.abs() <= old.abs() * (1 + 1e-6)) & (new * old >= 0)
    return bool(at_limit.all()) and bool(shorter.all())


def observers(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """Observers and fake quantisation, which eval mode does not stop."""
    machinery = holders.registered(type(e.owner))
    name = machinery.__name__ if machinery is not None else ""
    if name == "HeldFakeQuantize" and e.attribute in ("scale", "zero_point"):
        seen = _follows_its_observer(e.owner)
    elif name == "HeldObserver" and e.attribute in ("min_val", "max_val", "histogram"):
        seen = _saw_a_batch(e, scene)
    else:
        return None
    if not seen:
        return None
    return _wrote(
        e, f"{type(e.owner).__name__} observes its input in every mode; disable_observer stops it"
    )


def _follows_its_observer(owner: nn.Module) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scale, zero_point = owner.calculate_qparams()  # type: ignore[operator]
    except (AttributeError, RuntimeError, TypeError):
        return False
    own = owner._buffers
    pairs = ((scale, own.get("scale")), (zero_point, own.get("zero_point")))
    return all(
        has is not None and torch.equal(now.reshape(-1).double(), has.reshape(-1).double().cpu())
        for now, has in pairs
    )


def _saw_a_batch(e: TensorEvidence, scene: Scene) -> bool:
    """Whether the range became wider, or both of its ends moved as averages do."""
    beside = scene.beside(e)
    if {"min_val", "max_val"} <= beside.keys():
        return True
    pair = scene.pair(e)
    if pair is None or e.attribute == "histogram":
        return False
    wider = pair.new <= pair.old if e.attribute == "min_val" else pair.new >= pair.old
    return bool(wider.all())


def own_code(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """Codebooks, queues and counters: all moved that the code of the class writes."""
    if type(e.owner).__module__.startswith("torch."):
        return None  # of these it is known what they write, and when
    writes = written_by(type(e.owner))
    moved = sorted(writes & scene.beside(e).keys())
    if e.attribute not in moved or len(moved) < 2 or not _all_tables(e.owner, writes) <= set(moved):
        return None
    return _wrote(e, f"the code of {type(e.owner).__name__} writes {' and '.join(moved)}")


def _all_tables(owner: nn.Module, writes: frozenset[str]) -> set[str]:
    """Those of its buffers that hold numbers; flags and counters do not move at every forward."""
    buffers = owner._buffers
    return {n for n in writes if (b := buffers.get(n)) is not None and b.is_floating_point()}
