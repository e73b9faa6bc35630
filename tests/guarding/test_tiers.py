"""Each tier alone against each mutation of each model, and then the guard with all of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import frostline as fl
from frostline.errors import FrostlineWarning
from frostline.guarding.engine import Engine, Suspect
from frostline.guarding.pages.kernel import why_unavailable
from frostline.guarding.target import resolve
from tests.freezing.content import content, moved
from tests.guarding.mutation import Mutation
from tests.guarding.mutations import MUTATIONS
from tests.guarding.subjects import STEP, SUBJECTS, Run
from tests.zoo import seeded

BACKBONE = "backbone"
PAIRS = [
    pytest.param(mutation, model, id=f"{mutation.name}-{model}")
    for mutation in MUTATIONS
    for model in mutation.models
]
HOW = (
    "unknown|written in place by code that ran|written past autograd|was given other memory"
    "|another tensor was put at|nothing hangs at|\\[16\\] -> \\[2\\]"
)
"""Sentences that say how it was written, and accuse nobody."""

KINDS: dict[str, set[str]] = {
    "drift": {"value", "shape", "missing"},
    "cast": {"cast"},
    "replaced": set(),
    "nothing": set(),
}

Look = Callable[[Engine], Sequence[Suspect]]
LOOKS: dict[str, tuple[str, Look]] = {
    "identity": ("content", lambda e: e._look_at_identity()),
    "pages": ("auto", lambda e: e._suspects(e.pages.look(), "pages") if e.pages else []),
    "content": ("content", lambda e: e._suspects(e.patrol.run(1e-3), "content")),
    "full check": ("content", lambda e: e.full_check()),
}


@contextmanager
def running(mutation: Mutation, model: str) -> Iterator[Run]:
    """A training with the deed arranged, and what comes before it done."""
    run = Run(model)
    if mutation.optimizer is not None:
        run.optimizer = mutation.optimizer(list(run.net.parameters()))
    run.net.train()
    run.net.backbone.eval()
    with run.undo, seeded(1):
        mutation.before(run)
        run.arrange(mutation.place, mutation.do)
        yield run


def truth(before: Any, run: Run) -> set[str]:
    """Names of the frozen tensors whose bytes differ; of tied ones the first."""
    tensors = {n: t for n, t in _tensors(run) if n.startswith(BACKBONE)}
    names = [n for n in moved(before, run.net) if n.startswith(BACKBONE)]
    first = {id(t): n for n, t in reversed(tensors.items())}
    return {_plain(first[id(tensors[n])] if n in tensors else n) for n in names}


def _tensors(run: Run) -> Iterator[tuple[str, torch.Tensor]]:
    yield from run.net.named_parameters(remove_duplicate=False)
    yield from run.net.named_buffers(remove_duplicate=False)


def _plain(name: str) -> str:
    return re.sub(r"parametrizations\.(\w+)\.original", r"\1", name)


# --- each alone --------------------------------------------------------------------------------


class Alone:
    """One tier over one model, with all others switched off."""

    def __init__(self, run: Run, tier: str) -> None:
        proof, self._look = LOOKS[tier]
        self.engine = Engine(resolve(run.net, BACKBONE), overhead=0.01, proof=proof)  # type: ignore[arg-type]
        self.found: set[str] = set()

    def look(self) -> None:
        self.found |= {s.watched.name for s in self._look(self.engine) if s.kind != "replaced"}

    def look_on(self, looks: int) -> None:
        for _ in range(looks):
            self.look()


def looks_left(mutation: Mutation, tier: str, alone: Alone) -> int:
    """Looks after that of the step of the deed until the tier has to have seen it."""
    if tier == "content":
        return alone.engine.patrol.announced or 0
    return mutation.latest if tier == "identity" else 0


@pytest.mark.parametrize(("mutation", "model"), PAIRS)
def test_each_tier_alone(mutation: Mutation, model: str) -> None:
    with running(mutation, model) as run:
        unsafe = {"pages", "content"} if mutation.frees else set()
        tiers = {tier: Alone(run, tier) for tier in LOOKS.keys() - unsafe}
        before = content(run.net)
        for step in run.steps(STEP):
            for alone in tiers.values():
                alone.look()
            clean = step < STEP
            assert not (clean and any(alone.found for alone in tiers.values())), step
        for tier, alone in tiers.items():
            alone.look_on(looks_left(mutation, tier, alone))
        expected = truth(before, run)
    for alone in tiers.values():
        alone.engine.close()
    if why_unavailable():
        tiers.pop("pages", None)
    assert {t: alone.found for t, alone in tiers.items()} == {
        t: expected if t in mutation.seen else set() for t in tiers
    }
    assert bool(expected) == (mutation.says in ("drift", "cast"))


@pytest.mark.skipif(bool(why_unavailable()), reason=str(why_unavailable()))
@pytest.mark.parametrize("model", SUBJECTS)
def test_real_pages_are_watched(model: str) -> None:
    """Else the tier of pages would only read what fills no page, and show nothing."""
    run = Run(model)
    alone = Alone(run, "pages")
    assert alone.engine.pages is not None
    size = run.weight.nbytes
    assert alone.engine.pages.bytes_read_each_step <= alone.engine.nbytes - size + 2 * 4096
    assert size >= (256 << 10 if model == "cnn" else 32 << 10)
    alone.engine.close()


# --- all of them -------------------------------------------------------------------------------


def first_tier(mutation: Mutation) -> str:
    """The tier that is first to see it."""
    order = ["identity", "pages", "content", "full check"]
    if why_unavailable():
        order.remove("pages")
    return next(tier for tier in order if tier in mutation.seen)


def guarded(mutation: Mutation, model: str) -> tuple[Any, set[str]]:
    """The report of a guard over a training, and the truth."""
    with running(mutation, model) as run, warnings.catch_warnings():
        warnings.simplefilter("ignore", FrostlineWarning)
        before = content(run.net)
        with fl.guard(run.net, BACKBONE, on_change="warn") as guard:
            for step in run.steps(STEP + 64):
                late = mutation.latest or (mutation.says != "nothing" and not guard.report.changes)
                if step >= STEP and not late:
                    break
                if step >= STEP and guard.report.changes:
                    break
        return guard.report, truth(before, run)


@pytest.mark.parametrize(("mutation", "model"), PAIRS)
def test_the_guard_names_it_at_its_step(mutation: Mutation, model: str) -> None:
    report, expected = guarded(mutation, model)
    assert {c.name for c in report.drift} == (expected if mutation.says == "drift" else set())
    assert mutation.note in " ".join(report.notes)
    assert {c.severity for c in report.changes if c.kind == "replaced"} <= {"report"}
    told = [c for c in report.changes if c.kind != "replaced"]
    assert {c.name for c in told} == expected
    assert {c.kind for c in told} <= KINDS[mutation.says]
    if mutation.says == "replaced":
        assert [(c.step, c.tier) for c in report.changes] == [(STEP, "identity")]
    _told_in_time(mutation, told, report)


def _told_in_time(mutation: Mutation, told: Sequence[Any], report: Any) -> None:
    if not told:
        return
    tier = first_tier(mutation)
    assert {c.tier for c in told} == {tier}
    latest = STEP + (report.coverage or 64 if tier == "content" else mutation.latest)
    assert all(STEP <= c.step <= latest for c in told), [c.step for c in told]
    for change in told:
        assert re.search(f"{HOW}|{mutation.cause}", change.cause), change.cause


WRITERS = {
    *("SGD, for-loop", "SGD, foreach", "SGD, fused", "weights clipped through .data"),
    *(".data = other", "numpy", "ctypes.memmove", "memcpy of the C library"),
    *("read(2) into the tensor", "storage fill_", "dlpack", "all_reduce", "load_state_dict"),
    *("model.train() after validation", "Embedding(max_norm)", "EMA by torch", "out="),
    *("another thread", "set_", "swap_tensors", "a write and its undo", "1 ULP"),
    *("-0.0 for 0.0", "another NaN", "equal bytes"),
}


def test_the_25_writers_are_seen_within_one_step() -> None:
    """Of those, two leave the bytes as they were, and are notes."""
    rows = {row.name: row for row in MUTATIONS if row.name in WRITERS}
    assert len(rows) == len(WRITERS) == 25
    assert [n for n, row in rows.items() if row.latest or not row.seen & {"identity", "pages"}] == [
        "a write and its undo",
        "equal bytes",
    ]


def test_the_names_of_the_table_are_unique() -> None:
    names = [row.name for row in MUTATIONS]
    assert len(names) == len(set(names)) >= 70
