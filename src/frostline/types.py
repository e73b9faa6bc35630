"""The types of results."""

from typing import TYPE_CHECKING, Any

from frostline._results import Change as Change
from frostline.attribution import Attribution as Attribution
from frostline.freezing.part import FrozenPart as FrozenPart
from frostline.manifests import Manifest as Manifest

if TYPE_CHECKING:
    from frostline.guarding.freeze_guard import FreezeGuard as FreezeGuard
    from frostline.guarding.report import GuardReport as GuardReport


def __getattr__(name: str) -> Any:
    # The guard's machinery is loaded by the first guard, not by `import frostline`.
    if name == "FreezeGuard":
        from frostline.guarding.freeze_guard import FreezeGuard

        return FreezeGuard
    if name == "GuardReport":
        from frostline.guarding.report import GuardReport

        return GuardReport
    raise AttributeError(f"module 'frostline.types' has no attribute {name!r}")
