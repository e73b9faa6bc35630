"""Re-initialisation: by the function that was applied, or by what the values look like."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from frostline.guarding.causes.evidence import Apply, TensorEvidence
from frostline.guarding.causes.verdicts import Pair, Scene, Verdict, covers

_INIT = re.compile(r"init|reset|xavier|kaiming|glorot|normal|zeros|ones|orthogonal", re.I)
_ENOUGH = 64  # elements from which on a distribution can be told
_SOME = 16
_MEND = "initialise before freezing, and apply it to the new part only"


def by_function(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """``module.apply(init)`` over this tensor, whose values no longer follow the old ones."""
    event = _event(e, scene)
    if event is None or not _INIT.search(event.function):
        return None
    pair = scene.pair(e)
    if pair is not None and not _is_constant(e) and _follows(pair):
        return None
    text = (
        f"{type(event.module).__name__}.apply({event.function}) at {event.where} initialised {{}}"
    )
    return Verdict("re-initialisation", e.name, text, _MEND)


def by_values(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """Values as an initialisation leaves them: all 0, all 1, or drawn as the layer does."""
    if e.pointer_moved or e.replaced or e.tensor is None or not e.tensor.is_floating_point():
        return None
    if _is_constant(e):
        value = float(e.tensor.detach().reshape(-1)[0])
        text = f"every element of {{}} is {value:g} now: it was initialised or filled"
        return Verdict("re-initialisation", e.name, text, _MEND)
    if _was_drawn(e, scene) or _was_drawn_with_its_weight(e, scene):
        text = f"{{}} was drawn anew, as an initialisation of {type(e.owner).__name__} does"
        return Verdict("re-initialisation", e.name, text, _MEND)
    return None


def applied(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """Some other function that was applied to the modules."""
    event = _event(e, scene)
    if event is None or e.version_moved is False:
        return None
    text = f"{{}} was written in place, and {event.function} was applied to it at {event.where}"
    return Verdict("in-place operation", e.name, text)


def _event(e: TensorEvidence, scene: Scene) -> Apply | None:
    events = reversed(scene.window.applies)
    return next((a for a in events if covers(a.module, e.owner)), None)


def _is_constant(e: TensorEvidence) -> bool:
    """Whether all is 0 or 1 now."""
    if e.tensor is None or e.tensor.numel() < 2 or e.tensor.layout is not torch.strided:
        return False
    now = e.tensor.detach()
    return bool((now == 0).all()) or bool((now == 1).all())


def _follows(pair: Pair) -> bool:
    """Whether new values go with the old ones, more than chance would have it."""
    old, new = pair.wide
    if len(old) < _SOME:
        return False
    return bool(_correlation(old, new).abs() > 4 / math.sqrt(len(old)))


def _correlation(old: Tensor, new: Tensor) -> Tensor:
    stacked = torch.stack([old, new])
    return torch.nan_to_num(torch.corrcoef(stacked)[0, 1], nan=0.0)


def _was_drawn(e: TensorEvidence, scene: Scene) -> bool:
    pair = scene.pair(e)
    if pair is None or len(pair.old) < _ENOUGH or _follows(pair) or not bool(pair.differ.all()):
        return False
    return _fits(e)


def _was_drawn_with_its_weight(e: TensorEvidence, scene: Scene) -> bool:
    """A bias is short; it goes with a weight that was drawn, and within the same bounds."""
    weight = scene.beside(e).get(e.attribute.replace("bias", "weight", 1))
    if "bias" not in e.attribute or weight is None or not _was_drawn(weight, scene):
        return False
    pair = scene.pair(e)
    assert e.tensor is not None  # noqa: S101
    bound = max(_bounds(weight), default=0.0)
    within = float(e.tensor.detach().abs().max()) <= bound * (1 + 1e-5)
    return within and pair is not None and bool(pair.differ.all())


def _fits(e: TensorEvidence) -> bool:
    """Whether the values fill the range of a usual initialisation of this layer."""
    assert e.tensor is not None  # noqa: S101
    now = e.tensor.detach().double()
    largest, spread = float(now.abs().max()), float(now.std())
    uniform = any(
        0.85 * b < largest <= b * (1 + 1e-5) and abs(spread / b * math.sqrt(3) - 1) < 0.15
        for b in _bounds(e)
    )
    return uniform or (_is_bell(now) and any(abs(spread / s - 1) < 0.08 for s in _spreads(e)))


def _is_bell(now: Tensor) -> bool:
    centred = now - now.mean()
    return 2.5 < float((centred**4).mean() / (centred**2).mean() ** 2) < 3.5


def _fans(e: TensorEvidence) -> tuple[int, int] | None:
    if e.tensor is None or e.tensor.dim() < 2:
        return None
    return nn.init._calculate_fan_in_and_fan_out(e.tensor)


def _bounds(e: TensorEvidence) -> list[float]:
    """Bounds of torch's own uniform draws."""
    hidden, fans = getattr(e.owner, "hidden_size", None), _fans(e)
    found = [1 / math.sqrt(hidden)] if isinstance(hidden, int) else []
    if fans is not None:
        found += [1 / math.sqrt(fans[0]), math.sqrt(6 / sum(fans)), math.sqrt(6 / fans[0])]
    return found


def _spreads(e: TensorEvidence) -> list[float]:
    """Standard deviations of usual normal draws."""
    fans = _fans(e)
    if isinstance(e.owner, nn.Embedding | nn.EmbeddingBag):
        return [1.0, 0.02]
    if fans is None:
        return []
    return [math.sqrt(2 / fans[0]), math.sqrt(2 / fans[1]), math.sqrt(2 / sum(fans)), 0.02]
