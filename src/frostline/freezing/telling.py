"""What the user should know about a freeze: heard at once as a warning, or read in the part."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from frostline.freezing import holders
from frostline.freezing.held_gates import HeldCheckpointing
from frostline.freezing.reads_training import class_reads
from frostline.freezing.record import is_held

if TYPE_CHECKING:
    from frostline.freezing.planning import Plan, PlannedHold

_ALWAYS_THE_BATCH = (
    "without running statistics: normalises with the batch in every mode, so its output still "
    "depends on the other samples"
)
_NEVER_TRAINED = (
    "never trained: running mean 0, variance 1, counter 0 are held, which normalises nothing. Load "
    "weights first, then part.seal()"
)
_OTHER_OUTPUT = (
    "returns something else in eval mode (it takes targets). To keep training behaviour: "
    'fl.freeze(..., mode="follow")'
)
_NO_CHECKPOINTING = (
    "has gradient_checkpointing=True and asks training for it: held in eval it will not "
    'checkpoint. To keep it: fl.freeze(..., mode="follow")'
)
_LOOSE = (
    "its parameters are frozen and its running statistics are not, since they were named without "
    "the module. Select the module itself"
)
_UNHELD = (
    "is covered, but its module is not held in eval mode and may write it in training: it was "
    "named without its module, or something below trains"
)
_HELD_ALREADY = (
    "is held in eval mode by another part, as a copy of a frozen model is by its own, so its "
    "statistics stay whatever stats= asks here. Undo that part first: fl.parts(model)"
)
_MIXED = "follows train() and eval(): something below it stays trainable"
_ROUNDING = (
    "with gradients enabled the output may differ from before by rounding (about 1e-7 in float32): "
    "torch chooses kernels by requires_grad there. Under no_grad it is the same bit for bit"
)


def tell(plan: Plan) -> None:
    """Add to the warnings and notes of ``plan`` what its holds bring with them."""
    untracked = [hold.name for hold in plan.holds if _uses_the_batch_always(hold.module)]
    held = [hold for hold in plan.holds if hold.eval]
    stats = [hold for hold in held if hold.stats == "hold"]
    plan.warnings += [
        *_say(untracked, _ALWAYS_THE_BATCH),
        *_say(_loose_norms(plan), _LOOSE),
        *_say([h.name for h in stats if _never_trained(h.module)], _NEVER_TRAINED),
        *_say([h.name for h in _taking_targets(held)], _OTHER_OUTPUT),
        *_say(list(_gates(held)), _NO_CHECKPOINTING),
    ]
    plan.notes += plan.warnings
    plan.notes += _say([hold.name for hold in plan.holds if hold.mixed], _MIXED)
    plan.notes += _say(_unheld_buffers(plan), _UNHELD)
    plan.notes += _say([h.name for h in plan.holds if _asks_in_vain(h)], _HELD_ALREADY)
    if plan.parameters:
        chosen = [hold.name for hold in plan.holds if isinstance(hold.module, _CHOSEN_BY_FLAG)]
        plan.notes += _say(chosen, _ROUNDING)


_CHOSEN_BY_FLAG = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)


def _say(names: list[str], what: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{names[0] or 'the model itself'}{more}: {what}"]


def _uses_the_batch_always(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def _asks_in_vain(hold: PlannedHold) -> bool:
    return hold.stats in ("update", "batch") and is_held(hold.module)


def _never_trained(module: nn.Module) -> bool:
    counter = module._buffers.get("num_batches_tracked")
    mean, var = module._buffers["running_mean"], module._buffers["running_var"]
    if counter is None or mean is None or var is None or mean.is_meta:
        return False
    return counter.item() == 0 and not bool(mean.any()) and bool((var == 1).all())


def _loose_norms(plan: Plan) -> list[str]:
    """Norms of which parameters were selected one by one."""
    covered = {id(hold.module) for hold in plan.holds}
    loose = [
        entry.name.rpartition(".")[0]
        for entry in plan.parameters
        if id(entry.owner) not in covered and holders.tracks_statistics(entry.owner)
    ]
    return list(dict.fromkeys(loose))


def _unheld_buffers(plan: Plan) -> list[str]:
    held = {id(hold.module) for hold in plan.holds if hold.eval or hold.stats is not None}
    return [
        entry.name
        for entry in plan.tensors
        if entry.kind == "buffer" and id(entry.owner) not in held
        if class_reads(type(entry.owner))
    ]


def _taking_targets(held: list[PlannedHold]) -> list[PlannedHold]:
    forwards = {type(hold.module).forward for hold in held}
    takers = {f for f in forwards if "targets" in inspect.signature(f).parameters}
    return [hold for hold in held if type(hold.module).forward in takers]


def _gates(held: list[PlannedHold]) -> Iterator[str]:
    """Names of held modules that would checkpoint in training mode only."""
    asking = [h for h in held if getattr(h.module, "gradient_checkpointing", False) is True]
    # At and below a layer of transformers the flag is only read along with it.
    layers = [hold.module for hold in asking if _is_checkpointed_layer(hold.module)]
    kept = {id(below) for layer in layers for below in layer.modules()}
    for hold in asking:
        above = any(map(_is_checkpointed_layer, hold.module.modules()))
        if not above and id(hold.module) not in kept:
            yield hold.name


def _is_checkpointed_layer(module: nn.Module) -> bool:
    return holders.registered(type(module)) is HeldCheckpointing
