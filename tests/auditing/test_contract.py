"""What every rule promises: file, page, cases and mend; and that an audit only looks."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import frostline as fl
from frostline._names import named_modules, named_tensors
from frostline.auditing import rules as table
from frostline.auditing.finding import Finding
from frostline.auditing.report import AuditReport
from frostline.auditing.rule import FAMILIES, Rule
from frostline.auditing.rules import BY_CODE, RULES, UNEXPLAINED
from tests.auditing.cases import Case
from tests.everything import everything, forget_other_tests

_HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("small_heap")

CODES = [code for code in BY_CODE if (_HERE / "rules" / f"{code.lower()}.py").exists()]
SECTIONS = [
    "What it does", "Why is this bad?", "Example", "Use instead", "Fix safety", "Known problems",
    "References",
]  # fmt: skip
OPTIONAL = {"Known problems"}
LONGEST = 120


def cases_of(code: str) -> ModuleType:
    return import_module(f"tests.auditing.rules.{code.lower()}")


def builders(code: str, kind: str) -> list[Callable[[], Case]]:
    return [make for name, make in vars(cases_of(code)).items() if name.startswith(kind)]


def every(kind: str) -> list[object]:
    return [
        pytest.param(code, make, id=f"{code}-{make.__name__}")
        for code in CODES
        for make in builders(code, kind)
    ]


def asked(case: Case) -> AuditReport:
    return fl.audit(
        case.model,
        frozen=case.frozen,
        optimizer=case.optimizer,
        batch=case.batch,
        compute_loss=case.compute_loss,
    )


def of(code: str, report: AuditReport) -> list[Finding]:
    return [finding for finding in report.findings if finding.code == code]


def told(report: AuditReport) -> set[str]:
    return {finding.code for finding in report.findings if finding.severity != "info"}


# --- files -------------------------------------------------------------------------------------


def test_table_files_and_cases_agree() -> None:
    folder = Path(str(table.__file__)).parent
    files = {path.stem for path in folder.glob("frz*.py")}
    assert files == {
        f"{rule.code.lower()}_{rule.name.replace('-', '_')}" for rule in BY_CODE.values()
    }
    assert {path.stem for path in (_HERE / "rules").glob("frz*.py")} == {c.lower() for c in BY_CODE}
    assert len(BY_CODE) == len(RULES) + 1
    assert len({rule.name for rule in BY_CODE.values()}) == len(BY_CODE)


def test_the_table_is_sorted() -> None:
    assert [rule.code for rule in RULES] == sorted(rule.code for rule in RULES)


@pytest.mark.parametrize("code", CODES)
def test_code_name_and_file(code: str) -> None:
    rule = BY_CODE[code]
    assert re.fullmatch(r"FRZ\d{3}", rule.code)
    assert rule.code[3] in FAMILIES
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.name)
    assert rule.check.__module__.endswith(f"{code.lower()}_{rule.name.replace('-', '_')}")


@pytest.mark.parametrize("code", CODES)
def test_two_cases_on_each_side(code: str) -> None:
    assert len(builders(code, "bad")) >= 2
    assert len(builders(code, "good")) >= 2


# --- pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_the_page_has_its_sections_in_order(code: str) -> None:
    rule = BY_CODE[code]
    title, *_ = rule.page.splitlines()
    assert title == f"# {rule.name} ({code})"
    found = re.findall(r"^## (.+)$", rule.page, flags=re.MULTILINE)
    assert found == [s for s in SECTIONS if s in found]
    assert set(SECTIONS) - OPTIONAL <= set(found)


@pytest.mark.parametrize("code", CODES)
def test_the_code_of_the_page_runs(code: str) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", BY_CODE[code].page, flags=re.MULTILINE | re.DOTALL
    )
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


# --- cases -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "make"), every("bad"))
def test_a_bad_case(code: str, make: Callable[[], Case]) -> None:
    """Its exact set of codes; nothing is changed by looking; the mend runs, and mends."""
    forget_other_tests()
    case = make()
    before = _all_of(case)
    report = asked(case)
    assert _all_of(case) == before
    found = of(code, report)
    assert found, [str(f) for f in report.findings]
    assert told(report) | {code} == case.codes, [str(f) for f in report.findings]
    _check_words(found, case.model)
    _mend(case, found)
    left = [finding for finding in of(code, asked(case)) if not _is_advice(finding.mend)]
    assert left == []


@pytest.mark.parametrize(("code", "make"), every("good"))
def test_a_good_case_is_clean_under_all_rules(code: str, make: Callable[[], Case]) -> None:
    forget_other_tests()
    case = make()
    before = _all_of(case)
    report = asked(case)
    assert _all_of(case) == before
    assert told(report) == set(), [str(f) for f in report.findings]
    assert of(code, report) == []


def _check_words(found: list[Finding], model: nn.Module) -> None:
    known = {name for name, _ in named_modules(model)}
    known |= {entry.name for entry in named_tensors(model)}
    for finding in found:
        assert "\n" not in finding.message
        assert len(finding.message) <= LONGEST
        assert finding.where in known
        assert set(finding.tensors) <= known


def _mend(case: Case, found: list[Finding]) -> None:
    mends = list(dict.fromkeys(finding.mend for finding in found))
    assert all(mend.strip() for mend in mends)
    names = {"model": case.model, "optimizer": case.optimizer, "fl": fl, "torch": torch, "nn": nn}
    for mend in mends:
        exec(mend, names)
    case.optimizer = names["optimizer"]  # type: ignore[assignment]
    case.model = names["model"]  # type: ignore[assignment]


def _is_advice(mend: str) -> bool:
    return all(line.lstrip().startswith("#") for line in mend.splitlines())


# --- it only looks -----------------------------------------------------------------------------


def _all_of(case: Case) -> tuple[object, ...]:
    return (
        # A parameter without a shape has nothing that could be compared.
        None
        if any(map(is_lazy, case.model.parameters()))
        else everything(case.model, case.optimizer),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("way", ["read", "measured"])
def test_nothing_is_changed_when_a_check_raises(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def check(subject: object) -> Iterator[object]:
        raise RuntimeError("a bug of a rule")

    broken = Rule("FRZ999", "broken", check)  # type: ignore[arg-type]
    monkeypatch.setattr("frostline.auditing.judging.RULES", (broken,))
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters())
    batch = torch.randn(4, 2) if way == "measured" else None
    case = Case(model, optimizer=optimizer, batch=batch)
    forget_other_tests()
    before = _all_of(case)
    with pytest.raises(RuntimeError, match="a bug of a rule"):
        asked(case)
    assert _all_of(case) == before


def test_the_last_rule_sees_what_the_others_named() -> None:
    assert UNEXPLAINED.code == "FRZ100"
    assert UNEXPLAINED not in RULES
