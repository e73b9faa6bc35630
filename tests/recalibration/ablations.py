"""Each mechanism of recalibrate, how to turn off this one alone, and what must fail then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from frostline._moments import Moments
from frostline.freezing.record import is_held
from frostline.lockstep.holdings import Holdings
from frostline.recalibration import (
    calibration_set,
    layerwise,
    making,
    norms,
    observing,
    populations,
    running,
)
from frostline.recalibration.layerwise import Layerwise
from frostline.recalibration.paging import MappedFile
from tests.switches import Ablation, Switch, replace, skip

_HERE = "tests/recalibration/test_"
_LAYERWISE = _HERE + "layerwise.py::"
_MERGED = _HERE + "merged.py::"
_NORMS = _HERE + "norms.py::"
_ROOM = _HERE + "room.py::"
_SETS = _HERE + "sets.py::"
_UNTOUCHED = _HERE + "untouched.py::"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(mechanism, turn_off, tests)


@contextmanager
def _only_without_gradients(*_: Any, **__: Any) -> Iterator[None]:
    with torch.no_grad():
        yield


def _first_alone(self: Layerwise) -> Moments:
    joined, self._moments = self._moments[0], []
    self._observing.add(self._at[0], joined)  # type: ignore[arg-type]
    return joined


def _all_in_training(model: Any, wanted: Any) -> None:
    for module in model.modules():
        if not is_held(module):
            vars(module)["training"] = True


RECALIBRATING: list[Ablation] = [
    _ablation(
        "recalibrate: batches are joined",
        replace(Layerwise, "_joined", _first_alone),
        _LAYERWISE + "test_a_net_whose_parts_are_joined",
        _LAYERWISE + "test_it_is_one_forward_of_the_whole_set_however_that_is_split[mlp_bn1d]",
    ),
    _ablation(
        "recalibrate: wide statistics",
        replace(populations, "_wide", lambda x: x.dtype),
        _LAYERWISE + "test_a_narrow_model_normalises_with_statistics_that_are_not_rounded[dtype0]",
    ),
    _ablation(
        "recalibrate: state",
        replace(running, "untouched", _only_without_gradients),
        _UNTOUCHED + "test_undo_brings_everything_back[levit-layerwise]",
        _UNTOUCHED + "test_random_numbers_and_self_written_state_are_put_back[merged]",
    ),
    _ablation(
        "recalibrate: only norms train",
        replace(running, "_set_modes", _all_in_training),
        _LAYERWISE + "test_a_net_whose_parts_are_joined",
        _NORMS + "test_what_is_not_selected_runs_as_in_eval[merged]",
    ),
    _ablation(
        "recalibrate: batches of its own",
        replace(making, "copied", lambda batch: batch),
        _UNTOUCHED + "test_a_module_that_doubles_its_input_in_place_sees_each_batch_once",
    ),
    _ablation(
        "recalibrate: features of one batch",
        skip(Holdings, "claim"),
        _LAYERWISE + "test_a_model_that_keeps_features_from_forward_to_forward_is_refused",
    ),
    _ablation(
        "recalibrate: batches go the same way",
        skip(layerwise, "_place"),
        _LAYERWISE + "test_batches_that_go_different_ways_are_named",
    ),
    _ablation(
        "recalibrate: what is not finite",
        skip(observing, "is_finite", True),
        _UNTOUCHED
        + "test_values_that_are_not_finite_name_the_first_norm_that_sees_them[nan-layerwise]",
    ),
    _ablation(
        "recalibrate: norms written by hand",
        skip(making, "_refuse_unseen"),
        _NORMS + "test_a_norm_that_is_written_by_hand_is_refused_by_name[merged]",
    ),
    _ablation(
        "recalibrate: the hold is asked",
        skip(norms, "_left"),
        _NORMS + "test_held_norms_are_left_and_said[switches0]",
        _NORMS + "test_held_norms_are_left_and_said[switches1]",
        _NORMS + "test_norms_that_never_update_are_left",
    ),
    _ablation(
        "recalibrate: shuffling is refused",
        skip(calibration_set, "_refuse_what_changes"),
        _SETS + "test_a_loader_that_shuffles_is_refused_and_can_be_merged[shuffle=True]",
    ),
    _ablation(
        "recalibrate: batches are drawn evenly",
        replace(calibration_set, "_evenly", lambda length, *_: list(range(length))),
        _SETS + "test_batches_are_drawn_evenly[list-12-used5]",
    ),
    _ablation(
        "recalibrate: pages are given back",
        skip(MappedFile, "give_back", True),
        _ROOM + "test_a_mapped_file_gives_memory_back_and_keeps_the_bytes",
    ),
    _ablation(
        "recalibrate: counters",
        skip(making, "_each", 0),
        _NORMS + "test_counters_go_on_by_what_one_forward_counts[layerwise]",
        _NORMS + "test_counters_go_on_by_what_one_forward_counts[merged]",
    ),
]
