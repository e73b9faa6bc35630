"""The mechanisms of the prediction, each with a way to turn it off and the tests that must fail."""

from __future__ import annotations

from typing import Any

from frostline.auditing.predicting import (
    effects,
    keeping,
    ledger,
    listening,
    running,
    stand_ins,
    stepping,
    values,
)
from tests.switches import Ablation, Switch, replace, skip

_HERE = "tests/auditing/predicting/"
_WRITERS = _HERE + "test_writers.py::"
_STEP = _HERE + "test_step.py::"
_FORMS = _HERE + "test_optimizers.py::"
_BACK = _HERE + "test_put_back.py::"
_CASES = _WRITERS + "test_a_step_changes_what_was_predicted"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(mechanism, turn_off, tests)


def _by_schema_alone() -> None:
    listening.written_by.__globals__["STATISTICS"] = {}


def _each_alone(self: Any, tensor: Any) -> Any:
    with self.fake:
        return tensor.new_empty(tensor.shape)


PREDICTING: list[Ablation] = [
    _ablation("predicting: undeclared writes", _by_schema_alone, _CASES + "[sgd-batch norm]"),
    _ablation(
        "predicting: shared memory",
        replace(stand_ins.StandIns, "_plain", _each_alone),
        _CASES + "[sgd-flat memory]",
    ),
    _ablation(
        "predicting: windows on one memory",
        replace(ledger, "meet", lambda a, b: True),
        _WRITERS + "test_interleaved_windows_on_one_memory_are_told_apart",
    ),
    _ablation(
        "predicting: data swapped",
        replace(listening, "_SET_DATA", None),
        _CASES + "[sgd-data swapped]",
    ),
    _ablation(
        "predicting: attributes replaced",
        skip(running._Run, "_compare"),
        _CASES + "[sgd-buffers replaced]",
    ),
    _ablation(
        "predicting: values that are at hand",
        replace(stand_ins, "_may_be_constant", lambda tensor: False),
        _CASES + "[sgd-queue]",
    ),
    _ablation(
        "predicting: zeros",
        replace(stand_ins, "is_zero", lambda tensor: False),
        _WRITERS + "test_a_predicted_zero_is_a_zero",
    ),
    _ablation(
        "predicting: gradients that vanish",
        replace(effects, "_VANISHES", effects.SURE),
        _FORMS + "test_every_form_of_an_optimizer[lived-RAdam]",
    ),
    _ablation(
        "predicting: what is fresh",
        replace(values.Values, "_is_fresh", lambda *_: False),
        _CASES + "[sgd-batch norm]",
    ),
    _ablation(
        "predicting: layers that are never dropped",
        skip(listening, "_decide"),
        _STEP + "test_layers_dropped_at_random[0.0]",
    ),
    _ablation(
        "predicting: looks into memory",
        replace(listening, "_LOOKS", frozenset()),
        _STEP + "test_what_needs_values_is_refused_in_words",
    ),
    _ablation(
        "predicting: held gradients are cleared",
        replace(stepping.live_parts, "all_parts", list),
        _BACK + "test_a_gradient_of_a_held_parameter_is_cleared_in_the_step_only",
    ),
    _ablation(
        "predicting: hooks of optimizers do not run",
        replace(stepping, "_below_hooks", lambda optimizer: type(optimizer).step),
        _BACK + "test_a_guard_does_not_count_the_step_and_hooks_of_the_optimizer_do_not_run",
    ),
    _ablation(
        "predicting: the optimizer is put back",
        skip(keeping, "_fill"),
        _BACK + "test_a_new_optimizer_stays_new",
    ),
]
