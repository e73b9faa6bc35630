"""The audit gives exactly the codes that each way of going wrong has; nothing is invented.

The corpus was written from the threads, before the rules that find it. A new finding there is a
false alarm or a gap of the corpus: the facts of the thread decide.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

import frostline as fl
from frostline.auditing.report import AuditReport
from tests.auditing.cases import Case
from tests.auditing.faults.corpus import FAULTS, UNTOLD, Fault
from tests.coverage_table import TOLD

pytestmark = [
    # torch's own warnings about two of the faults.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True"),
    pytest.mark.filterwarnings("ignore:`?torch.ao.quantization:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _no_group_left() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def audited(case: Case, *, batch: bool = True) -> AuditReport:
    return fl.audit(
        case.model,
        frozen=case.frozen,
        optimizer=case.optimizer,
        batch=case.batch if batch else None,
        compute_loss=case.compute_loss if batch else None,
    )


def told(report: AuditReport, expected: frozenset[str]) -> set[str]:
    """Codes of warning or above, and those of the fault itself where they only inform."""
    return {f.code for f in report.findings if f.severity != "info" or f.code in expected}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_a_fault_is_told_by_its_codes(fault: Fault) -> None:
    case = fault.build()
    assert case.codes
    report = audited(case)
    assert told(report, case.codes) == case.codes, f"{fault.source}\n{report}"
    assert case.codes <= {f"FRZ{digits}" for digits in TOLD[f"F{fault.number}"]}


def test_every_failure_mode_is_told_or_has_a_reason() -> None:
    numbers = {fault.number for fault in FAULTS}
    assert numbers | set(UNTOLD) == set(range(1, 86))
    assert not numbers & set(UNTOLD)
    assert set(TOLD) == {f"F{number}" for number in numbers}


def test_every_fault_has_a_source_and_a_name_of_its_own() -> None:
    assert all(fault.source for fault in FAULTS)
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)
