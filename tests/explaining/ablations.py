"""Each mechanism of explain, summary and param_groups, how to turn off this one alone, and what
must fail then.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch

from frostline.behaviours import leaking, norms, registry, untouched
from frostline.explaining import accumulating, grouping
from frostline.explaining.explanation import Explanation
from frostline.parameter_groups import grouping as parameter_groups
from frostline.summaries import leaking as summary_leaks
from frostline.summaries.births import Births
from frostline.summaries.footprint import Footprint
from tests.switches import Ablation, Switch, replace, skip

_EXPLAIN = "tests/explaining/test_explain.py::"
_ACCUMULATING = "tests/explaining/test_accumulating.py::"
_SUMMARIES = "tests/summaries/"
_GROUPS = "tests/parameter_groups/"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(mechanism, turn_off, tests)


@contextmanager
def _nothing_kept(*_: Any, **__: Any) -> Any:
    yield


SEEING: list[Ablation] = [
    _ablation(
        "explain: norms write",
        skip(norms, "_batch_writes", ()),
        _EXPLAIN + "test_what_is_called_leaky_is_what_a_step_changes[two_branches]",
        _EXPLAIN + "test_equal_modules_are_told_once_with_their_formulas",
    ),
    _ablation(
        "explain: the hold is read",
        skip(registry, "is_held", False),
        _EXPLAIN + "test_held_modules_are_said_to_be_held",
    ),
    _ablation(
        "explain: batch statistics are read",
        replace(norms, "BATCH", "nobody"),
        _EXPLAIN + "test_held_modules_are_said_to_be_held",
    ),
    _ablation(
        "explain: code is read",
        skip(registry, "by_code"),
        _EXPLAIN + "test_code_that_asks_for_the_mode_is_quoted",
        _EXPLAIN + "test_who_writes_in_training_writes_what_is_said[codebook]",
    ),
    _ablation(
        "explain: hooks are read",
        skip(registry.self_writing, "hooked_spectral_norm"),
        _EXPLAIN + "test_who_writes_in_training_writes_what_is_said[old spectral norm]",
    ),
    _ablation(
        "explain: what is meant to move",
        skip(grouping, "follows_on_purpose", False),
        _EXPLAIN + "test_statistics_that_are_meant_to_move_are_no_leak",
    ),
    _ablation(
        "summary: what is meant to move",
        skip(leaking, "follows_on_purpose", False),
        _SUMMARIES + "test_leaks.py::test_statistics_that_are_to_follow_do_not_leak",
    ),
    _ablation(
        "explain: surprises",
        skip(Explanation, "surprises", {}),
        _EXPLAIN + "test_a_write_that_nobody_said_is_a_surprise",
    ),
    _ablation(
        "explain: correlation",
        replace(accumulating, "_rho", lambda big: torch.zeros_like(big.var)),
        _ACCUMULATING + "test_the_formula_is_the_run_for_images_of_known_correlation[2-0.5]",
    ),
    _ablation(
        "explain: the running mean is checked",
        skip(accumulating, "_error", 1.0),
        _ACCUMULATING + "test_the_running_mean_is_the_formula_after_a_real_run[0.1-2]",
    ),
    _ablation(
        "sandbox: state",
        replace(untouched, "restoring", _nothing_kept),
        _EXPLAIN + "test_nothing_is_touched[resnet18]",
        _EXPLAIN + "test_nothing_is_touched_when_the_model_raises",
    ),
    _ablation(
        "sandbox: versions",
        replace(untouched, "_versions_kept", _nothing_kept),
        _EXPLAIN + "test_nothing_is_touched[resnet18]",
    ),
    _ablation(
        "sandbox: lists",
        replace(untouched, "_lists_kept", _nothing_kept),
        _EXPLAIN + "test_lists_and_batches_are_put_back",
    ),
    _ablation(
        "summary: shared bytes count once",
        skip(Footprint, "share", False),
        _SUMMARIES + "test_leaks.py::test_memory_shared_with_something_trainable",
    ),
    _ablation(
        "summary: old gradients",
        skip(summary_leaks, "stale", ()),
        _SUMMARIES + "test_leaks.py::test_an_old_gradient_moves_what_is_frozen",
    ),
    _ablation(
        "summary: saved activations",
        skip(Births, "alive", 0),
        _SUMMARIES + "test_step.py::test_frozen_layers_save_nothing_below_the_first_trainable_one",
    ),
    _ablation(
        "param_groups: no decay",
        skip(parameter_groups, "spared", set()),
        _GROUPS + "test_decay.py::test_the_usual_rule",
        _GROUPS + "test_decay.py::test_a_submodule_says_it_for_itself",
    ),
    _ablation(
        "param_groups: layers",
        skip(parameter_groups, "layers", None),
        _GROUPS + "test_layers.py::test_frozen_layers_count",
    ),
]
