"""The mechanisms of the probe, each with a way to turn it off and the tests that must then fail."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from frostline.probing import calls, making, probe, putting_back, rows, runs, samples
from frostline.probing.joining import JoinedNorms
from tests.switches import Ablation, Switch, remove, replace, skip

_COUPLING = "tests/probing/test_coupling.py::"
_CASES = _COUPLING + "test_couplers_are_named_and_ok_is_what_accumulation_does"
_EXPERTS = _COUPLING + "test_experts_that_sort_tokens_raise_no_false_alarm"
_LOSS = "tests/probing/test_loss.py::"
_SHOWN = "tests/probing/test_shown.py::"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(mechanism, turn_off, tests)


@contextmanager
def _nothing_kept(*_: Any, **__: Any) -> Any:
    yield


def _neighbours(count: int) -> tuple[bool, ...]:
    return tuple(place < count // 2 for place in range(count))


def _halves_are_neighbours() -> None:
    samples.in_first_half = rows.in_first_half = _neighbours


PROBING: list[Ablation] = [
    _ablation(
        "coupling: others are put back",
        replace(runs.torch, "where", lambda condition, value, tensor: tensor),
        _CASES + "[hand-written]",
    ),
    _ablation(
        "coupling: which dimension",
        skip(runs.Seen, "take_dimension"),
        _CASES + "[batch norm]",
    ),
    _ablation("coupling: halves are no neighbours", _halves_are_neighbours, _CASES + "[ghost]"),
    _ablation(
        "coupling: rows in turn",
        replace(runs, "arrangements", lambda *args: rows.arrangements(*args)[:1]),
        _CASES + "[norm over padded steps]",
    ),
    _ablation(
        "coupling: sorted, by shape",
        replace(runs.Replaced, "unsteady", property(lambda run: {})),
        _EXPERTS + "[66]",
        _EXPERTS + "[81]",
    ),
    _ablation("coupling: sorted, by rows", skip(runs, "are_sorted", False), _EXPERTS + "[2]"),
    _ablation(
        "coupling: dropout is off",
        skip(probe, "_quieten"),
        _CASES + "[experts]",
    ),
    _ablation(
        "coupling: draws by call",
        skip(calls, "_draw_anew"),
        _COUPLING + "test_random_numbers_of_one_module_do_not_depend_on_those_of_another",
    ),
    _ablation(
        "coupling: rounding",
        skip(rows, "noise", 0.0),
        _CASES + "[experts]",
    ),
    _ablation(
        "coupling: joined norms",
        remove(JoinedNorms, "batch_norm"),
        _CASES + "[batch norm]",
        "tests/probing/test_unjoinable.py::test_couplers_beside_batch_norm_calls[batch norm]",
    ),
    _ablation(
        "coupling: state that is kept",
        skip(probe.Probe, "remembering", ()),
        _CASES + "[codebook]",
        _COUPLING + "test_what_one_forward_leaves_for_the_next_couples_microbatches",
    ),
    _ablation(
        "coupling: the loss with both halves",
        replace(runs.Both, "__call__", lambda self, passing, tensor: tensor),
        _CASES + "[batch norm]",
    ),
    _ablation(
        "coupling: gradients in the loss",
        replace(runs, "_standing_in", lambda value, tensor: value),
        _LOSS + "test_sums_and_means_over_samples[gradient penalty]",
    ),
    _ablation(
        "coupling: modules beside the model",
        skip(making, "modules_beside", ()),
        _LOSS + "test_a_teacher_in_training_mode_couples_through_the_loss",
        _LOSS + "test_a_teacher_is_found_wherever_the_loss_has_it",
    ),
    _ablation(
        "coupling: noise for equal samples",
        replace(samples, "_stirred", lambda sample, seed: sample),
        _COUPLING + "test_a_batch_of_zeros_is_stirred",
    ),
    _ablation(
        "coupling: runs from the same start",
        replace(probe, "from_the_same_start", _nothing_kept),
        _COUPLING + "test_what_one_forward_leaves_for_the_next_couples_microbatches",
    ),
    _ablation(
        "coupling: all is put back",
        replace(putting_back, "untouched", _nothing_kept),
        _SHOWN + "test_nothing_is_touched[two_branches]",
    ),
]
