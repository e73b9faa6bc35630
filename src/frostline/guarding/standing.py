"""How a guard stands: what its tiers did, and whether it can say "unchanged"."""

from __future__ import annotations

from frostline.guarding.engine import Engine
from frostline.guarding.report import GuardReport
from frostline.guarding.tiers import tiers

ALTERED = ("value", "cast", "dtype", "shape", "missing")
"""Kinds of change after which the bytes are others."""


def fill(report: GuardReport, engine: Engine, *, final: bool) -> None:
    """Write into ``report`` what the engine has done so far."""
    report.tiers = tiers(engine, not report.nothing_ran)
    report.coverage = _coverage(engine)
    if final:
        report.frozen, report.nbytes = len(engine.target.tensors), engine.nbytes
    report.let_go = len(engine.let_go_names)
    report.unchanged = _is_unchanged(report, engine, final)
    report.seconds["full check"] = engine.clocks["full check"].seconds


def _is_unchanged(report: GuardReport, engine: Engine, final: bool) -> bool:
    """Only after every byte was read at the exit, and only of what is watched still."""
    if not (final and engine.target.tensors) or engine.cut_short:
        return False
    return not any(c.kind in ALTERED for c in report.changes)


def _coverage(engine: Engine) -> int | None:
    announced = engine.patrol.announced
    return max(1, announced) if announced is not None and engine.pages is not None else announced
