"""The mechanisms of the audit, each with a way to turn it off and the tests that must then fail."""

from __future__ import annotations

from frostline.auditing import claim, judging, modes, moving, reading
from frostline.auditing.rule import Rule
from tests.auditing.measuring.ablations import MEASURING
from tests.auditing.predicting.ablations import PREDICTING
from tests.switches import Ablation, Switch, replace, skip

_CLAIM = "tests/auditing/test_claim.py::"
_MODES = "tests/auditing/test_modes.py::"
_MOVING = "tests/auditing/test_moving.py::"
_CASES = "tests/auditing/test_contract.py::test_a_bad_case"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(f"audit: {mechanism}", turn_off, tests)


def _all_sure() -> Switch:
    told = reading._writes
    return replace(reading, "_writes", lambda *a: [(tensor, "") for tensor, _ in told(*a)])


AUDITING: list[Ablation] = [
    _ablation(
        "parts claim what they cover",
        skip(claim, "_is_member", False),
        _CLAIM + "test_a_part_claims_what_it_covers_beside_the_flags",
    ),
    _ablation(
        "what moves on purpose is not claimed",
        skip(claim, "_leave_out_what_follows"),
        _CLAIM + "test_statistics_that_a_part_lets_move_are_not_claimed",
    ),
    _ablation(
        "a train() of the user's is called",
        skip(modes, "_is_torchs", True),
        _MODES + "test_as_if_it_were_called[keeps eval-True-True]",
        _MODES + "test_as_if_it_were_called[patched-True-False]",
    ),
    _ablation(
        "a hold is no mode that train() changes",
        skip(modes, "is_held", False),
        _MODES + "test_as_if_it_were_called[held-True-True]",
    ),
    _ablation(
        "what is held is not moved",
        skip(moving, "covers", False),
        _MOVING + "test_what_is_held_is_not_moved",
    ),
    _ablation(
        "a twin decides whether a gradient moves a byte",
        replace(moving, "same_bits", lambda a, b: False),
        _MOVING + "test_as_a_real_step[SGD, rate 0-some-new]",
    ),
    _ablation(
        "memory shared with something trainable",
        skip(moving, "_through_shared_memory", ()),
        _MOVING + "test_memory_shared_with_something_trainable[first0-second0-True]",
    ),
    _ablation(
        "what nobody knows is undecided",
        _all_sure(),
        "tests/auditing/test_reading.py::test_a_class_that_nobody_knows_is_undecided",
    ),
    _ablation(
        "what no rule explains is told",
        replace(judging, "UNEXPLAINED", Rule("FRZ100", "silent", lambda subject: iter(()))),
        _CASES + "[FRZ100-bad_a_hook_of_the_optimizer_writes]",
    ),
    *MEASURING,
    *PREDICTING,
]
