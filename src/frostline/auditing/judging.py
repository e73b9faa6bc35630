"""From the arguments of ``audit`` to its report: gather facts, know the step, run the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from frostline._batches import tensors_in
from frostline._names import Places, places
from frostline._state import collector_paused
from frostline.auditing import inventory, knowing
from frostline.auditing.claim import claim
from frostline.auditing.finding import Finding, worst_first
from frostline.auditing.gathering import gather
from frostline.auditing.report import AuditReport
from frostline.auditing.rules import RULES, UNEXPLAINED
from frostline.auditing.subject import Subject
from frostline.selection import Selector

Loss = Callable[[nn.Module, Any], Tensor]


def judge(
    model: nn.Module,
    frozen: Selector,
    optimizer: Optimizer | None,
    batch: Any,
    compute_loss: Loss | None,
) -> AuditReport:
    """The report about ``model``, which is left as it is.

    Raises:
        SelectionError: ``frozen`` selects nothing.
        BatchError: the model cannot be run on the batch.
    """
    everything = places(model)
    noted: list[str] = []
    with collector_paused():
        claimed = claim(model, frozen, everything)
        modules = gather(model, everything, claimed, noted)
    asked = knowing.Asked(model, optimizer, batch, compute_loss, _way(everything, batch))
    now, after_train, notes = knowing.steps(asked, claimed, modules, everything)
    subject = Subject(
        model, claimed, modules, everything.tensors, now, after_train, optimizer, batch,
        compute_loss, knowing.probes(asked, claimed, modules, now),
    )  # fmt: skip
    with collector_paused():
        findings = _findings(subject)
        held = inventory.take(subject)
    return AuditReport.of(subject, findings, held, [*noted, *notes])


def _way(everything: Places, batch: Any) -> knowing.Way:
    """How the step is to be known."""
    if batch is None:
        return "read"
    if any(is_lazy(entry.tensor) for entry in everything.tensors):
        return "read"
    meta = any(e.tensor.is_meta for e in everything.tensors) or any(
        tensor.is_meta for tensor in tensors_in(batch)
    )
    return "predicted" if meta else "measured"


def _findings(subject: Subject) -> list[Finding]:
    found = [finding for rule in RULES for finding in rule.findings(subject)]
    subject.explained = {name for finding in found for name in finding.tensors}
    return worst_first([*found, *UNEXPLAINED.findings(subject)])
