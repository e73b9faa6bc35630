"""The types of results."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from frostline._results import Change as Change
from frostline.attribution import Attribution as Attribution
from frostline.freezing.part import FrozenPart as FrozenPart
from frostline.manifests import Manifest as Manifest

if TYPE_CHECKING:
    from frostline.accumulation.exact.planning import Plan as Plan
    from frostline.auditing.finding import Finding as Finding
    from frostline.auditing.report import AuditReport as AuditReport
    from frostline.explaining.explanation import Explanation as Explanation
    from frostline.guarding.freeze_guard import FreezeGuard as FreezeGuard
    from frostline.guarding.report import GuardReport as GuardReport
    from frostline.probing.result import Coupling as Coupling
    from frostline.recalibration.result import Recalibration as Recalibration
    from frostline.summaries.result import Summary as Summary


# What is loaded when somebody asks for it, not by `import frostline`.
_LATER = {
    "AuditReport": "frostline.auditing.report",
    "Coupling": "frostline.probing.result",
    "Explanation": "frostline.explaining.explanation",
    "Finding": "frostline.auditing.finding",
    "FreezeGuard": "frostline.guarding.freeze_guard",
    "GuardReport": "frostline.guarding.report",
    "Plan": "frostline.accumulation.exact.planning",
    "Recalibration": "frostline.recalibration.result",
    "Summary": "frostline.summaries.result",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'frostline.types' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
