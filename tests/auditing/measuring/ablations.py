"""The mechanisms of sandbox, step and probes, each with a way to turn it off, and its tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from frostline.auditing import probes, rerunning
from frostline.auditing.measuring import comparing, one_step, raising, sandbox, writers
from frostline.auditing.measuring import taking as measuring
from frostline.auditing.measuring.one_step import OneStep
from frostline.probing.runs import Base
from tests.switches import Ablation, Switch, remove, replace, skip

_BOX = "tests/auditing/measuring/test_sandbox.py::"
_STEP = "tests/auditing/measuring/test_taking.py::"
_RUN = "tests/auditing/measuring/test_one_step.py::"
_WAYS = "tests/auditing/measuring/test_comparing.py::"
_WHO = "tests/auditing/measuring/test_writers.py::"
_PROBES = "tests/auditing/test_probes.py::"
_DRAWS = _PROBES + "test_the_module_that_draws_is_named_and_not_those_behind_it"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(f"audit: {mechanism}", turn_off, tests)


@contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _unforgiving(*args: Any, forgiving: bool) -> OneStep:
    return OneStep(*args)


class _PassedOn:
    """Notes what differs and lets it go on to what is behind it."""

    def __init__(self, base: Base) -> None:
        self.changed: dict[Any, float] = {}
        self._base = base

    def __call__(self, passing: Any, tensor: Tensor) -> Tensor:
        if bool(self._base[passing.site].moved_in(tensor.detach()).any()):
            self.changed[passing.site] = 1.0
        return tensor


MEASURING: list[Ablation] = [
    _ablation(
        "guards do not hear",
        replace(sandbox, "_guards_deaf", _nothing),
        _BOX + "test_a_live_guard_hears_nothing[held]",
        _BOX + "test_a_live_guard_hears_nothing[flags]",
    ),
    _ablation(
        "classes of modules",
        replace(sandbox, "_classes_kept", _nothing),
        _BOX + "test_the_class_of_a_watched_module",
    ),
    _ablation(
        "attributes of the optimizer",
        replace(sandbox, "_attributes_kept", _nothing),
        _BOX + "test_schedulers_do_not_notice",
        _BOX + "test_state_of_an_optimizer[lived-AdamW]",
    ),
    _ablation(
        "optimizers inside of an optimizer",
        replace(sandbox, "_all_of", lambda optimizer: [optimizer]),
        _BOX + "test_an_optimizer_in_an_optimizer",
    ),
    _ablation(
        "containers",
        replace(sandbox._Containers, "put_back", _nothing),
        _BOX + "test_a_batch_that_is_taken_apart",
        _BOX + "test_ignored_calls_are_the_users",
        _BOX + "test_a_step_that_changes_everything[no]",
    ),
    _ablation(
        "tensors in containers",
        skip(sandbox._Tensors, "restore"),
        _BOX + "test_state_of_an_optimizer[lived-AdamW]",
        _BOX + "test_a_step_that_changes_everything[no]",
        _BOX + "test_a_batch_that_is_taken_apart",
    ),
    _ablation(
        "versions of gradients and state",
        replace(sandbox, "_versions_kept", _nothing),
        _BOX + "test_state_of_an_optimizer[lived-AdamW]",
    ),
    _ablation(
        "first forwards under a hold",
        replace(sandbox, "WATCH", "nothing"),
        _BOX + "test_a_first_forward_is_compared_inside_and_once_more_after",
        _RUN + "test_what_a_hold_refuses_does_not_change",
    ),
    _ablation(
        "modules beside",
        replace(measuring, "modules_beside", lambda *_: ()),
        _RUN + "test_a_teacher_beside",
    ),
    _ablation(
        "tensors compared where they stand",
        replace(comparing, "_standing", lambda entry: entry.tensor),
        _WAYS + "test_every_way_to_write[other object]",
        _WAYS + "test_every_way_to_write[other parameter]",
        _WAYS + "test_every_way_to_write[gone]",
    ),
    _ablation(
        "equal objects are not asked for",
        replace(comparing, "_are_equal", lambda old, new: False),
        _WAYS + "test_every_way_to_write[other object, same bytes]",
        _STEP + "test_gradients_add_to_those_that_are_there",
    ),
    _ablation(
        "not a number is no distance",
        replace(comparing.math, "isfinite", lambda value: True),
        _WAYS + "test_drift_where_there_is_a_number[not a number-drift2]",
    ),
    _ablation(
        "closures",
        skip(one_step, "_asks_for_closure", False),
        _RUN + "test_an_optimizer_that_asks_for_a_closure",
    ),
    _ablation(
        "gradients that arrive",
        skip(one_step, "_note"),
        _RUN + "test_an_optimizer_in_the_backward",
        _STEP + "test_an_old_gradient_moves_what_is_frozen",
    ),
    _ablation(
        "tries with other random numbers",
        replace(measuring, "_TRIES", 0),
        _RUN + "test_layers_left_out_at_random_are_reached",
    ),
    _ablation(
        "one value per channel",
        replace(raising, "ONE_VALUE", "nothing of the kind"),
        _RUN + "test_one_value_per_channel_is_told",
    ),
    _ablation(
        "a forward that fails after train",
        replace(measuring, "OneStep", _unforgiving),
        _RUN + "test_a_forward_that_only_fails_after_train_is_told",
    ),
    _ablation(
        "who is running",
        replace(writers, "running", lambda frame: iter(())),
        _WHO + "test_writers_are_named",
        _WHO + "test_a_writer_that_runs_again",
    ),
    _ablation(
        "another random state",
        remove(rerunning.Salted, "_shown"),
        _DRAWS + "[dropout]",
        _DRAWS + "[sampled]",
    ),
    _ablation(
        "generators of Python",
        skip(rerunning.random, "seed"),
        _DRAWS + "[python]",
    ),
    _ablation(
        "causes alone",
        replace(probes, "Again", _PassedOn),
        _DRAWS + "[noise]",
        _PROBES + "test_causes_alone_and_the_whole_at_the_end",
    ),
    _ablation(
        "the same state before each run",
        replace(probes, "from_the_same_start", _nothing),
        _PROBES + "test_what_is_steady[state]",
    ),
]
