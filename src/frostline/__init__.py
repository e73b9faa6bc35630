"""frostline: hold what is frozen, and prove that it held."""

from typing import TYPE_CHECKING

from frostline import errors as errors
from frostline import types as types
from frostline.accumulation import accumulate as accumulate
from frostline.accumulation import split as split
from frostline.attribution import attribute as attribute
from frostline.auditing import audit as audit
from frostline.explaining import explain as explain
from frostline.freezing import freeze as freeze
from frostline.freezing import parts as parts
from frostline.freezing import unfreeze as unfreeze
from frostline.guarding import guard as guard
from frostline.manifests import digest as digest
from frostline.manifests import manifest as manifest
from frostline.parameter_groups import param_groups as param_groups
from frostline.probing import coupling as coupling
from frostline.recalibration import recalibrate as recalibrate
from frostline.selection import FLAGGED as FLAGGED
from frostline.summaries import summary as summary

if TYPE_CHECKING:
    from frostline.accumulation.accumulator import Accumulator as Accumulator


def __getattr__(name: str) -> object:
    """The one class here brings machinery along, which is loaded when somebody asks for it."""
    if name != "Accumulator":
        raise AttributeError(f"module 'frostline' has no attribute {name!r}")
    from frostline.accumulation.accumulator import Accumulator

    return Accumulator
