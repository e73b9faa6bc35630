"""Each mechanism of the hold, how to turn off this one alone, and the tests that must fail then.

`ABLATIONS` are those of the hold, of the guard, and of what is told before a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from frostline.freezing import (
    applying,
    bound,
    comparing,
    finding,
    held_class,
    held_embeddings,
    held_gates,
    held_norms,
    held_observers,
    ignored,
    live_parts,
    machinery,
    optimizers,
    part,
    planning,
    record,
    releasing,
    sealing,
    telling,
    thawing,
    watching,
)
from frostline.freezing.machinery import Held
from tests.accumulation.ablations import ACCUMULATING
from tests.auditing.ablations import AUDITING
from tests.explaining.ablations import SEEING
from tests.guarding.ablations import GUARD
from tests.probing.ablations import PROBING
from tests.recalibration.ablations import RECALIBRATING
from tests.switches import Ablation, Switch, remove, replace, skip

_FILE = "tests/freezing/test_mechanisms.py::"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(mechanism, turn_off, tuple(_FILE + test for test in tests))


# --- ways of turning off -----------------------------------------------------------------------


def _plain(name: str, otherwise: property) -> property:
    """A property that reads what stands in the object, whatever the record says."""
    return property(lambda self: self.__dict__[name], otherwise.fset)


def _without_change(kind: str) -> Switch:
    """Let the comparison go on, and drop one kind from what it found."""
    content = comparing._content

    def filtered(*args: Any) -> Iterator[Any]:
        return (change for change in content(*args) if change.kind != kind)

    return replace(comparing, "_content", filtered)


def _setter_without_memory() -> Switch:
    def set_training(self: Any, mode: bool) -> None:
        own = record.get(self)
        if own is None or not own.eval:
            self.__dict__["training"] = mode
            return
        if mode:
            ignored.note(self, "train()")
        live_parts.mode_was_written(self, mode)

    return replace(Held, "training", property(Held.training.fget, set_training))


def _forgetful_record() -> None:
    # Copies and pickles of a record become None.
    record.Record.__reduce_ex__ = lambda self, protocol: (type(None), ())  # type: ignore[method-assign]


def _mode_forgotten() -> Switch:
    put = record.put

    def forgetting(module: nn.Module, new: record.Record) -> None:
        was_held = record.is_held(module)
        put(module, new)
        if was_held and not new.eval:
            module.__dict__["training"] = True

    def switch() -> None:
        applying.put = thawing.put = forgetting  # type: ignore[attr-defined]

    return switch


def _swap_out_always() -> Switch:
    def swap_out(module: nn.Module) -> None:
        for cls in type(module).__mro__:
            if machinery.is_held_class(cls):
                module.__class__ = machinery.base_of(cls)

    return replace(held_class, "swap_out", swap_out)


def _unverified() -> Switch:
    return replace(part.FrozenPart, "released", lambda self: releasing.released(self.model))


# --- the table ---------------------------------------------------------------------------------

HOLD: list[Ablation] = [
    _ablation("classes are swapped", skip(held_class, "swap_in"), "test_swap_in"),
    _ablation(
        "training is read from the record",
        replace(Held, "training", _plain("training", Held.training)),
        "test_getter",
    ),
    _ablation(
        "the mode asked for is remembered",
        _setter_without_memory(),
        "test_setter_remembers_what_was_asked",
    ),
    _ablation("the old mode comes back", _mode_forgotten(), "test_mode_before_the_freeze"),
    _ablation(
        "ignored calls are counted",
        skip(ignored, "note", False),
        "test_ignored_calls_are_counted",
    ),
    _ablation(
        "nothing above what trains is held",
        skip(planning, "with_trainable_below", set()),
        "test_nothing_with_something_trainable_below_is_held",
    ),
    _ablation(
        "unfreeze lets parents go",
        skip(thawing, "_free_parents"),
        "test_modules_of_what_trains_again_are_let_go",
    ),
    _ablation("copies carry the record", _forgetful_record, "test_record_goes_along_with_a_copy"),
    _ablation(
        "copies own their parts",
        replace(part.FrozenPart, "__deepcopy__", lambda self, memo: self),
        "test_copy_owns_its_part",
    ),
    _ablation(
        "modules copied out get a part",
        skip(finding, "_adopt"),
        "test_copy_of_a_module_inside_gets_a_part",
    ),
    _ablation(
        "pickles name the base class",
        remove(Held, "__reduce_ex__"),
        "test_pickle_names_the_base_class",
    ),
    _ablation(
        "gradients go at the freeze",
        skip(optimizers, "set_aside"),
        "test_gradients_go_at_the_freeze",
    ),
    _ablation("gradients come back", skip(optimizers, "bring_back"), "test_gradients_come_back"),
    _ablation("flags come back", skip(thawing, "_give_flags_back"), "test_flags_come_back"),
    _ablation("gradients go before a step", skip(optimizers, "watch_steps"), "test_step_hook"),
    _ablation(
        "the step hook leaves when idle",
        skip(optimizers, "unwatch_steps_if_idle"),
        "test_step_hook_leaves",
    ),
    _ablation("LBFGS is refused", skip(optimizers, "refuse_lbfgs"), "test_lbfgs"),
    _ablation(
        "an empty optimizer is refused",
        skip(applying, "_refuse_an_empty_optimizer"),
        "test_empty_optimizer",
    ),
    _ablation(
        "resets of statistics are ignored",
        remove(held_norms.HeldNorm, "reset_running_stats"),
        "test_reset",
    ),
    _ablation(
        'stats="batch" writes nothing',
        replace(
            held_norms.HeldNorm,
            "track_running_stats",
            _plain("track_running_stats", held_norms.HeldNorm.track_running_stats),
        ),
        "test_batch_statistics",
    ),
    _ablation(
        'stats="batch" of InstanceNorm',
        remove(held_norms.HeldInstanceNorm, "_apply_instance_norm"),
        "test_batch_statistics_of_instance_norm",
    ),
    _ablation(
        "Embedding(max_norm)", remove(held_embeddings.HeldEmbedding, "forward"), "test_embedding"
    ),
    _ablation(
        "EmbeddingBag(max_norm)",
        remove(held_embeddings.HeldEmbeddingBag, "forward"),
        "test_embedding_bag",
    ),
    _ablation(
        "observers look away", remove(held_observers.HeldObserver, "forward"), "test_observer"
    ),
    _ablation(
        "fake quantisation looks away",
        remove(held_observers.HeldFakeQuantize, "observer_enabled"),
        "test_fake_quantize",
    ),
    _ablation(
        "the first forward is compared",
        remove(watching.Watched, "__call__"),
        "test_first_forward_is_watched",
    ),
    _ablation(
        "recurrent kernels may go backward",
        remove(held_gates.HeldRNN, "forward"),
        "test_recurrent_kernel_is_in_training_mode_when_gradients_pass",
    ),
    _ablation(
        "the fast path is not chosen by flags",
        remove(held_gates.HeldFastPath, "forward"),
        "test_fast_path_is_not_chosen_by_the_freeze",
    ),
    _ablation(
        "checkpointing goes on",
        remove(held_gates.HeldCheckpointing, "__call__"),
        "test_checkpointing_goes_on",
    ),
    _ablation(
        "the checkpoint gate closes",
        remove(held_gates.HeldCheckpointing, "_gradient_checkpointing_func"),
        "test_checkpointed_forward_is_in_eval_mode",
    ),
    _ablation(
        "loaded parameters are frozen again",
        skip(bound.Bound, "freeze_again", ()),
        "test_frozen_again_after_a_load",
        "test_frozen_again_when_a_mode_is_written",
    ),
    _ablation(
        "mode writes wake the parts",
        skip(live_parts, "mode_was_written"),
        "test_frozen_again_when_a_mode_is_written",
        "test_replaced_module_is_refused",
    ),
    _ablation(
        "replaced modules are refused",
        skip(bound.Bound, "refuse_replaced_modules"),
        "test_replaced_module_is_refused",
    ),
    Ablation(
        "torch may swap what is frozen",
        skip(part, "is_swapped_by_torch", False),
        ("tests/test_failure_modes.py::test_a_frozen_quantised_model_can_be_moved_and_steps",),
    ),
    _ablation(
        "held classes go below others'",
        skip(held_class, "is_made_by_others", False),
        "test_held_class_goes_below_the_classes_of_others",
    ),
    _ablation(
        "undo leaves the classes of others",
        _swap_out_always(),
        "test_undo_leaves_the_classes_of_others",
    ),
    _ablation(
        "undo gives the class back",
        skip(held_class, "swap_out"),
        "test_undo_gives_the_class_back",
    ),
    _ablation(
        "no __init_subclass__ of the user",
        remove(Held, "__init_subclass__"),
        "test_registries_of_subclasses_do_not_see_held_classes",
    ),
    _ablation(
        "only readers of training are swapped",
        skip(planning, "class_reads", True),
        "test_only_modules_that_read_training_change_their_class",
    ),
    _ablation("released() is verified at its exit", _unverified(), "test_release_is_verified"),
    _ablation(
        "half of a tied tensor is refused",
        skip(planning, "_refuse_half_of_a_tied_tensor"),
        "test_half_of_a_tied_tensor",
    ),
    _ablation(
        "a norm never trained is told",
        skip(telling, "_never_trained", False),
        "test_never_trained_norm_is_told",
    ),
    _ablation("the seal sees values", skip(sealing, "matches", True), "test_value"),
    _ablation("the seal knows casts", skip(sealing, "_is_cast", False), "test_cast"),
    _ablation("the seal sees shapes", _without_change("shape"), "test_shape"),
    _ablation("the seal sees what is missing", _without_change("missing"), "test_missing"),
    _ablation("the seal sees what was added", skip(comparing, "_added", ()), "test_added"),
    _ablation("the seal sees replacements", _without_change("replaced"), "test_replaced"),
    _ablation("the seal sees flags", skip(comparing, "_flags", ()), "test_requires_grad"),
    _ablation("the seal sees modes", skip(comparing, "_modes", ()), "test_mode"),
]

ABLATIONS: list[Ablation] = [
    *HOLD,
    *GUARD,
    *SEEING,
    *AUDITING,
    *ACCUMULATING,
    *PROBING,
    *RECALIBRATING,
]
