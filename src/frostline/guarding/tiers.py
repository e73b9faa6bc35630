"""The ways of looking, each with what it can and cannot see: for the report."""

from __future__ import annotations

from frostline._results import plural
from frostline.guarding.engine import Engine
from frostline.guarding.report import Tier


def tiers(engine: Engine, ran: bool) -> list[Tier]:
    """All of them, whether they ran or not."""
    return [
        _preflight(engine, ran),
        _identity(engine),
        _pages(engine),
        _content(engine),
        _full(engine),
    ]


def _preflight(engine: Engine, ran: bool) -> Tier:
    return Tier(
        "preflight",
        ran,
        len(engine.target.tensors),
        0,
        int(ran),
        0.0,
        "what is going to write, before the first step",
        "what code does later",
        "" if ran else "no step was taken",
    )


def _identity(engine: Engine) -> Tier:
    clock = engine.clocks["identity"]
    return Tier(
        "identity",
        clock.looks > 0,
        len(engine.target.tensors),
        0,
        clock.looks,
        clock.seconds,
        "other objects, memory, modes at the next step; dtypes, shapes, flags within 16",
        "writes into the same memory",
        "" if clock.looks else "nothing was looked at",
    )


def _pages(engine: Engine) -> Tier:
    clock, pages = engine.clocks["pages"], engine.pages
    reasons = "; ".join(f"{names[0]} {reason}" for reason, names in engine.unwatched.items())
    if pages is None:
        asked = "proof='content' was asked for" if engine.proof == "content" else reasons
        return Tier("pages", False, 0, 0, 0, 0.0, "", "", asked or "there is nothing to watch")
    broken = "the kernel lost the record of some pages" if engine.pages_broken else ""
    return Tier(
        "pages",
        clock.looks > 0,
        len(pages.references),
        pages.nbytes,
        clock.looks,
        clock.seconds,
        "every write of this process at the next step, by the kernel's record",
        "writes by devices past the page tables, bits that flip in the hardware",
        "; ".join(filter(None, [broken, reasons])) or ("" if clock.looks else "no step was taken"),
    )


def _content(engine: Engine) -> Tier:
    clock, patrol = engine.clocks["content"], engine.patrol
    count = sum(1 for r in engine.references if any(p.nbytes for p in r.pieces))
    paged = len(engine.pages.references) if engine.pages is not None else 0
    if not patrol.nbytes:
        why = "pages vouch for all" if paged else "there are no bytes"
    elif engine.overhead <= 0:
        why = "overhead=0 leaves it no time"
    else:
        why = "no step was taken"
    steps = patrol.announced
    within = f"every byte within {plural(steps, 'step')}" if steps else "every byte in turn"
    return Tier(
        "content",
        clock.looks > 0,
        count - paged,
        patrol.nbytes,
        clock.looks,
        clock.seconds,
        f"{within}, whoever wrote it",
        "a write that is put back before it is read",
        "" if clock.looks else why,
    )


def _full(engine: Engine) -> Tier:
    clock = engine.clocks["full check"]
    return Tier(
        "full check",
        clock.looks > 0,
        len(engine.target.tensors),
        engine.nbytes,
        clock.looks,
        clock.seconds,
        "every byte, at save points, check() and the exit",
        "a write that is put back before",
        "" if clock.looks else "not yet",
    )
