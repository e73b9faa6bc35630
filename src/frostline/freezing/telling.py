"""What the user should know about a freeze: heard at once as a warning, or read in the part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import nn

from frostline.freezing import holders
from frostline.freezing.held_gates import HeldCheckpointing

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
_MIXED = "follows train() and eval(): something below it stays trainable"
_ROUNDING = (
    "with gradients enabled the output may differ from before by rounding (about 1e-7 in float32): "
    "torch chooses kernels by requires_grad there. Under no_grad it is the same bit for bit"
)


def tell(plan: Plan) -> None:
    """Add to the warnings and notes of ``plan`` what its holds bring with them."""
    gates = set(_gates(plan))
    plan.warnings += [
        *_say(plan, _uses_the_batch_always, _ALWAYS_THE_BATCH),
        *_say(
            plan, lambda hold: hold.stats == "hold" and _never_trained(hold.module), _NEVER_TRAINED
        ),
        *_say(plan, lambda hold: hold.eval and _takes_targets(hold.module), _OTHER_OUTPUT),
        *_say(plan, lambda hold: hold.name in gates, _NO_CHECKPOINTING),
    ]
    plan.notes += plan.warnings
    plan.notes += _say(plan, lambda hold: hold.mixed, _MIXED)
    if plan.parameters:
        plan.notes += _say(plan, _chooses_kernels_by_flag, _ROUNDING)


def _say(plan: Plan, about: Callable[[PlannedHold], bool], what: str) -> list[str]:
    names = [hold.name for hold in plan.holds if about(hold)]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{names[0] or 'the model itself'}{more}: {what}"]


def _uses_the_batch_always(hold: PlannedHold) -> bool:
    module = hold.module
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def _never_trained(module: nn.Module) -> bool:
    counter = module._buffers.get("num_batches_tracked")
    mean, var = module._buffers["running_mean"], module._buffers["running_var"]
    if counter is None or mean is None or var is None or mean.is_meta:
        return False
    return bool(counter == 0) and not bool(mean.any()) and bool((var == 1).all())


def _takes_targets(module: nn.Module) -> bool:
    return "targets" in inspect.signature(type(module).forward).parameters


def _chooses_kernels_by_flag(hold: PlannedHold) -> bool:
    kinds = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return isinstance(hold.module, kinds)


def _gates(plan: Plan) -> Iterator[str]:
    """Names of held modules that would checkpoint in training mode only."""
    layers = [hold.module for hold in plan.holds if _is_checkpointed_layer(hold.module)]
    # Below such a layer the flag is only read along with it.
    kept = {id(below) for layer in layers for below in layer.modules()}
    for hold in plan.holds:
        asks = hold.eval and getattr(hold.module, "gradient_checkpointing", False) is True
        inside = id(hold.module) in kept or any(map(_is_checkpointed_layer, hold.module.modules()))
        if asks and not inside:
            yield hold.name


def _is_checkpointed_layer(module: nn.Module) -> bool:
    return holders.registered(type(module)) is HeldCheckpointing
