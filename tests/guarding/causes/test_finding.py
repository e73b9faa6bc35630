"""Causes: named rightly on changes as users make them, wrong on at most one in fifty."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from frostline.guarding.causes import evidence, initialising, optimizing, rewriting, self_writing
from frostline.guarding.causes import finding as causes
from frostline.guarding.causes.finding import KINDS
from tests.guarding.causes import cause_models as models
from tests.guarding.causes import cause_table
from tests.guarding.causes.cause_corpus import CASES, CNN, FIRST_RUN, HELD_OUT, stale, step
from tests.guarding.causes.cause_harness import Case, Live, answers, asked, changed
from tests.zoo import seeded

ALL = [*CASES, *HELD_OUT]


Gathered = dict[str, tuple[Case, list[evidence.TensorEvidence], evidence.WindowEvidence]]


@pytest.fixture(scope="module")
def gathered() -> Gathered:
    return {case.name: (case, *changed(case)) for case in ALL}


@pytest.fixture(scope="module")
def scored(gathered: Gathered) -> cause_table.Scored:
    return {name: answers(*of) for name, of in gathered.items()}


def test_every_change_changes_something(scored: cause_table.Scored) -> None:
    assert [name for name, by_memory in scored.items() if not by_memory["copies"]] == []
    assert len(scored) == len(ALL) >= 40


def test_every_kind_is_in_the_corpus(scored: cause_table.Scored) -> None:
    expected = {a.expected for by_memory in scored.values() for a in by_memory["copies"]}
    assert expected == set(KINDS)


@pytest.mark.parametrize("memory", ["copies", "samples", "nothing"])
def test_wrong_causes(scored: cause_table.Scored, memory: str) -> None:
    wrong = {
        name: {(a.expected, a.said) for a in by_memory[memory] if a.is_wrong}
        for name, by_memory in scored.items()
        if cause_table.verdict(by_memory[memory]) == "wrong"
    }
    assert len(wrong) <= 0.02 * len(scored), wrong


@pytest.mark.parametrize("memory", ["copies", "samples"])
def test_right_causes(scored: cause_table.Scored, memory: str) -> None:
    """A rule that never answers is never wrong; so most answers must be the true cause."""
    assert cause_table.scores(scored)[memory]["right"] >= 0.95 * len(scored)


def _verdicts(gathered: Gathered) -> Counter[str]:
    return Counter(cause_table.verdict(asked(*of, "copies")) for of in gathered.values())


@pytest.mark.parametrize("rule", causes._RULES, ids=lambda rule: rule.__name__)
def test_each_rule_is_needed(
    rule: causes.Rule,
    gathered: Gathered,
    scored: cause_table.Scored,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(causes, "_RULES", tuple(r for r in causes._RULES if r is not rule))
    with_it = Counter(cause_table.verdict(by_memory["copies"]) for by_memory in scored.values())
    assert _verdicts(gathered)["right"] < with_it["right"]


CHECKS = [
    (rewriting, "_explains", lambda *_: True),
    (self_writing, "_could_be_average", lambda *_: True),
    (self_writing, "_both_moved", lambda *_: True),
    (self_writing, "_shortened", lambda *_: True),
    (self_writing, "_is_unit", lambda *_: True),
    (self_writing, "_is_iterated", lambda *_: True),
    (self_writing, "_follows_its_observer", lambda *_: True),
    (self_writing, "_all_tables", lambda *_: set()),
    (rewriting, "_is_product", lambda *_: True),
    (initialising, "_follows", lambda *_: False),
    (initialising, "_fits", lambda *_: True),
    (optimizing, "_is_decay", lambda *_: True),
    (optimizing, "_is_torchs", lambda *_: False),
    (causes, "_counted_anyway", lambda *_: False),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check[1])
def test_each_check_keeps_a_wrong_cause_out(
    check: tuple[Any, str, Any], gathered: Gathered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*check)
    assert _verdicts(gathered)["wrong"] > 0


def test_page_is_current(scored: cause_table.Scored) -> None:
    page = cause_table.page(scored, len(HELD_OUT), FIRST_RUN)
    assert cause_table.PAGE.read_text() == page, "run python tests/guarding/causes/cause_table.py"


def _texts(case: Case) -> list[tuple[str, str | None]]:
    found, window = changed(case)
    return [(cause.text, cause.mend) for cause in causes.find(found, window)]


def test_text_of_running_statistics() -> None:
    assert _texts(Case("", "mlp_bn1d", Live.forward, "", frozen="backbone.1")) == [
        (
            "backbone.1 ran forward in training mode; BatchNorm1d then writes "
            "0.9 * running + 0.1 * batch, whatever requires_grad says",
            "fl.freeze(model, 'backbone.1')",
        )
    ]


def test_text_joins_siblings_and_tells_momentum_and_count() -> None:
    def twice(live: Live) -> None:
        live["backbone.1"].momentum = live["backbone.4"].momentum = 0.25
        live.forward()
        live.forward()

    assert _texts(Case("", "mlp_bn1d", twice, "")) == [
        (
            "backbone.{1,4} (2 modules) ran forward in training mode 2 times; BatchNorm1d then "
            "writes 0.75 * running + 0.25 * batch, whatever requires_grad says",
            "fl.freeze(model, 'backbone')",
        )
    ]


def test_text_of_a_load_names_the_line() -> None:
    def load(live: Live) -> None:
        state = {k: v + 1 for k, v in live.model.state_dict().items()}
        live.model.load_state_dict(state)

    line = load.__code__.co_firstlineno + 2
    ((text, _),) = _texts(Case("", CNN, load, ""))
    assert text.startswith(f"load_state_dict at {__file__}:{line} loaded other values into trunk")


def test_text_of_an_optimizer_names_it_its_group_and_options() -> None:
    before = stale(torch.optim.SGD, lr=0.1, momentum=0.5)
    ((text, mend),) = _texts(Case("", CNN, step, "", "trunk.0.0.weight", before))
    assert text == (
        "SGD, group 0 (lr 0.1, momentum 0.5), stepped on trunk.0.0.weight, which had a gradient "
        "though it requires none: from before the freeze, or written by hand"
    )
    assert mend is not None
    assert mend.startswith("fl.freeze(model, 'trunk.0.0.weight', optimizer=optimizer)")


def test_casts_are_reported_and_no_drift() -> None:
    found, window = changed(Case("", CNN, lambda live: live.model.half(), ""))
    assert {cause.severity for cause in causes.find(found, window)} == {"report"}


def test_casts_without_old_values_are_drift() -> None:
    found, window = changed(Case("", CNN, lambda live: live.model.half(), ""))
    for e in found:
        e.old = None
    by_kind = {cause.kind: cause.severity for cause in causes.find(found, window)}
    assert by_kind["cast"] == "drift"


def test_what_is_gone() -> None:
    owner = nn.Linear(2, 2)
    e = evidence.TensorEvidence("a.b", owner, "b", "buffer", None, None, None, None)
    (cause,) = causes.find([e], evidence.WindowEvidence())
    assert (cause.kind, cause.text) == ("replaced object", "nothing hangs at a.b any more")


def test_no_evidence_no_causes() -> None:
    assert causes.find([], evidence.WindowEvidence()) == []


def test_each_tensor_has_one_cause() -> None:
    found, window = changed(next(c for c in HELD_OUT if c.name.startswith("forward, and a grad")))
    names = [name for cause in causes.find(found, window) for name in cause.names]
    assert sorted(names) == sorted(e.name for e in found)


def test_asking_changes_nothing() -> None:
    """Neither a tensor, nor a version, nor a random generator."""
    for case in (models.quantized, models.spectral, models.embedding):
        found, window = changed(Case("", case, Live.forward, ""))
        before = [
            (e.tensor, e.tensor.clone(), e.tensor._version) for e in found if e.tensor is not None
        ]
        random = torch.get_rng_state()
        causes.find(found, window)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(t, c) and t._version == v for t, c, v in before)


STEPS: dict[str, tuple[Callable[[nn.Parameter], None], bool, bool | None]] = {
    "no gradient": (lambda p: None, False, None),
    "a gradient": (lambda p: setattr(p, "grad", torch.ones_like(p)), True, False),
    "a gradient of zero": (lambda p: setattr(p, "grad", torch.zeros_like(p)), True, True),
    "a gradient of NaN": (lambda p: setattr(p, "grad", torch.full_like(p, torch.nan)), True, False),
    "a sparse gradient": (lambda p: setattr(p, "grad", torch.eye(2).to_sparse()), True, None),
}


@pytest.mark.parametrize("grad", STEPS)
def test_evidence_of_a_step(grad: str) -> None:
    prepare, had, zero = STEPS[grad]
    p = nn.Parameter(torch.ones(2, 2))
    prepare(p)
    other = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [other]}, {"params": [p], "lr": 0.5}], lr=0.1)
    of = evidence.before_step(optimizer, {"p": p}).of(p)
    assert of is not None
    assert (of.group, of.options["lr"], of.had_grad, of.zero_grad) == (1, 0.5, had, zero)


def test_evidence_of_a_step_keeps_the_options_of_then() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([p], lr=torch.tensor(0.5))
    step_ = evidence.before_step(optimizer, {"p": p})
    optimizer.param_groups[0]["lr"].fill_(0.1)
    of = step_.of(p)
    assert of is not None
    assert float(of.options["lr"]) == 0.5
    assert step_.of(torch.ones(2)) is None


def test_evidence_of_a_step_asks_no_inner_tensor_for_a_gradient() -> None:
    """`.grad` of what is no leaf warns, and warnings are errors here."""
    inner = torch.ones(2, requires_grad=True) * 2
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evidence.before_step(optimizer, {"inner": inner})


@pytest.mark.parametrize("noise", [1e-4, 1e-1])
def test_a_load_of_the_values_of_before_does_not_explain_noise(noise: float) -> None:
    """The fingerprint of what was loaded is not what is there."""

    def load_then_write(live: Live) -> None:
        live.model.load_state_dict({k: v.clone() for k, v in live.model.state_dict().items()})
        with torch.no_grad(), seeded(2):
            live["trunk.0.0"].weight.add_(torch.randn(8, 1, 3, 3) * noise)

    found, window = changed(Case("", CNN, load_then_write, ""))
    assert {cause.kind for cause in causes.find(found, window)} == {"unknown"}
