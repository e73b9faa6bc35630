"""Each mechanism of the guard, how to turn off this one alone, and the tests that must fail."""

from __future__ import annotations

import os
from typing import Any

from frostline._state import Snapshot
from frostline.freezing import live_parts
from frostline.guarding import (
    answers,
    engine,
    freeze_guard,
    identity,
    preflight,
    ranks,
    rounds,
    telling,
)
from frostline.guarding.causes import observing
from frostline.guarding.engine import Engine
from frostline.guarding.freeze_guard import FreezeGuard
from frostline.guarding.identity import Identity
from frostline.guarding.idle import IdleWatch
from frostline.guarding.listening import Ears
from frostline.guarding.pages import kernel
from frostline.guarding.pages.record import PageRecord, interior
from frostline.guarding.pages.tier import PageTier
from frostline.guarding.patrol import Patrol
from frostline.guarding.pinpointing import dispatching
from frostline.guarding.pinpointing.dispatching import WriteDispatch
from frostline.guarding.pinpointing.line_tracing import LineTracing
from frostline.guarding.reference import HostBlocks, Reference
from frostline.guarding.witness import Memory, Witness
from tests.switches import Ablation, Switch, replace, skip

_HERE = "tests/guarding/"


def _ablation(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    return Ablation(mechanism, turn_off, tuple(f"{_HERE}test_mechanisms.py::{t}" for t in tests))


def _told(mechanism: str, turn_off: Switch, *tests: str) -> Ablation:
    paths = (f"{_HERE}test_mechanisms_told.py::{test}" for test in tests)
    return Ablation(mechanism, turn_off, tuple(paths))


# --- ways of turning off -----------------------------------------------------------------------


def _without_edges(self: PageTier, ref: Reference, piece: HostBlocks, span: Any) -> None:
    start, end = interior(*span)
    if end > start:
        self._ranges.append((start, end, ref, piece))
    else:
        self._rest.append((piece.view, ref, piece))


def _leave_unchecked(self: FreezeGuard) -> None:
    self._close_report()


def _leave_without_a_note(self: FreezeGuard, error: BaseException) -> None:
    self._close_report()


def _always_this_process() -> None:
    pid = os.getpid()
    freeze_guard.os.getpid = lambda: pid


def _never_cut_short() -> Switch:
    full_check = Engine.full_check

    def forgetful(self: Engine, seconds: float | None = None) -> Any:
        found = full_check(self, seconds)
        self.cut_short = False
        return found

    return replace(Engine, "full_check", forgetful)


def _not_marked_again() -> None:
    kernel.why_unavailable()  # whose trial, done once, would refuse a kernel like this
    kernel._REARM = 0


def _declared_writes_only(func: Any) -> list[tuple[int, str]]:
    arguments = enumerate(func._schema.arguments)
    return [(i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write]


# --- the table ---------------------------------------------------------------------------------

GUARD: list[Ablation] = [
    _ablation("identity: places", skip(Identity, "_look_at_places"), "test_places"),
    _ablation("identity: modules", replace(identity, "_links", lambda _: iter(())), "test_links"),
    _ablation("identity: memory", skip(Identity, "_look_at_memory"), "test_pointers"),
    _ablation("identity: modes", skip(Identity, "_look_at_modes"), "test_modes"),
    _ablation("identity: rotation", skip(Identity, "_look_at_forms"), "test_rotation"),
    _ablation(
        "versions are kept",
        replace(Identity, "_versions_kept", lambda self, known: self._versions_now()),
        "test_versions_are_kept_beside_an_event",
    ),
    _ablation("pages: small rest", skip(PageTier, "_digest_of_rest", 0), "test_small_rest"),
    _ablation(
        "pages: edges",
        replace(PageTier, "_add", _without_edges),
        "test_edges[where0]",
        "test_edges[where1]",
    ),
    _ablation("pages: the kernel's record", skip(PageRecord, "written", []), "test_record"),
    _ablation("pages: marked again", _not_marked_again, "test_rearm"),
    _ablation("pages: a lost record", skip(PageTier, "unbroken", True), "test_lost_record"),
    _ablation(
        "a new record reads all once",
        skip(Engine, "_read_what_began_anew", []),
        "test_what_was_written_before_the_record_began_anew",
    ),
    _ablation("the patrol walks", skip(Patrol, "run", []), "test_patrol"),
    _ablation("the patrol has a quota", skip(Patrol, "_revise"), "test_quota"),
    _ablation(
        "full check at the exit",
        replace(FreezeGuard, "_leave", _leave_unchecked),
        "test_full_check_at_the_exit",
    ),
    _ablation("full check at a save", skip(Ears, "saving"), "test_full_check_at_a_save"),
    _ablation("full check when asked", skip(FreezeGuard, "check"), "test_full_check_when_asked"),
    _ablation("calls of modules are heard", skip(observing, "listen"), "test_full_check_at_a_save"),
    _ablation("a check cut short says so", _never_cut_short(), "test_a_check_that_is_cut_short"),
    _ablation("steps are heard", skip(rounds, "listen"), "test_optimizer_hooks"),
    _ablation("skipped steps count", skip(Ears, "skipped"), "test_skipped_step"),
    _ablation(
        "optimizers of others do not",
        skip(Ears, "_is_of_interest", True),
        "test_optimizers_of_others",
    ),
    _ablation("nothing ran is told", skip(telling, "warn"), "test_nothing_ran_is_told"),
    _ablation(
        "seal at the entry", skip(FreezeGuard, "_look_at_seals", []), "test_seal_at_the_entry"
    ),
    _ablation(
        "a note on an exception",
        replace(FreezeGuard, "_leave_by", _leave_without_a_note),
        "test_note_on_an_exception",
    ),
    _ablation(
        "parts tell before they shrink",
        skip(live_parts, "about_to_shrink"),
        "test_let_go_on_unfreeze",
    ),
    _ablation(
        "checked before it is let go",
        skip(FreezeGuard, "_found_quietly", []),
        "test_last_check_before_it_is_let_go",
    ),
    _ablation(
        "what is thawed is let go", skip(FreezeGuard, "_membership"), "test_let_go_on_unfreeze"
    ),
    _ablation("flags that thaw", skip(FreezeGuard, "follow_flags"), "test_flags_that_thaw"),
    _ablation("a child is silent", _always_this_process, "test_forked_child"),
    _ablation("a change is told once", skip(Engine, "settle"), "test_a_tensor_is_told_once"),
    _ablation("restore", skip(answers, "put_back", True), "test_restore"),
    _ablation(
        "restore drops stray state",
        skip(answers, "drop_optimizer_state", []),
        "test_restore_drops_the_state_of_the_write",
    ),
    _ablation(
        "restore knows the step's own",
        skip(Engine, "witnessed_clean", frozenset()),
        "test_restore_knows_what_no_forward_read",
    ),
    _ablation(
        "rewind", skip(Snapshot, "restore"), "test_rewind", "test_rewind_goes_to_the_last_check"
    ),
    _ablation(
        "a check is one to rewind to",
        skip(answers.Rewind, "after_full_check"),
        "test_rewind_goes_to_the_last_check",
    ),
    _told("pinpoint: operators", skip(WriteDispatch, "_touched", []), "test_dispatch"),
    _told(
        "pinpoint: undeclared writes",
        replace(dispatching, "_writes_of", _declared_writes_only),
        "test_undeclared_writes",
    ),
    _told("pinpoint: lines", skip(LineTracing, "start"), "test_line_tracing"),
    _told(
        "pinpoint: other memory",
        skip(Memory, "_exchanged", []),
        "test_lines_of_other_memory",
    ),
    _told(
        "pinpoint: after an alarm",
        skip(Witness, "after_alarm"),
        "test_lines_after_an_alarm[warn]",
        "test_lines_after_an_alarm[restore]",
    ),
    _told(
        "pinpoint: what is known",
        skip(FreezeGuard, "_give_lines"),
        "test_lines_of_what_is_known_to_have_changed",
    ),
    _told(
        "preflight: norms",
        skip(preflight, "_training_norms", []),
        "test_norms_in_training_mode",
    ),
    _told(
        "preflight: self-writing",
        skip(preflight, "_self_writing", []),
        "test_modules_that_write_to_themselves",
    ),
    _told(
        "preflight: stale gradients",
        skip(preflight, "_stale_gradients", []),
        "test_stale_gradients",
    ),
    _told(
        "preflight: optimizers",
        skip(preflight, "of_optimizer", []),
        "test_frozen_in_an_optimizer",
    ),
    _told("preflight: shared", skip(preflight, "_shared_memory", []), "test_shared_bytes"),
    _told(
        "idle",
        skip(IdleWatch, "idle", []),
        "test_idle",
        "test_idle_without_a_gradient",
    ),
    _told("idle knows why", skip(IdleWatch, "before_step"), "test_idle_without_a_gradient"),
    _told("ranks: who differs", skip(ranks, "_judge", ranks.RankReport(3)), "test_ranks"),
    _told(
        "ranks: at a check",
        skip(FreezeGuard, "_compare_ranks"),
        "test_ranks_are_compared_at_a_check",
    ),
    _told(
        "old values of small tensors",
        skip(engine, "smallest", frozenset()),
        "test_small_tensors_have_numbers",
    ),
]
