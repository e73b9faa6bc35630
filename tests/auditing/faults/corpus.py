"""All set-ups, in the order of the failure modes."""

from __future__ import annotations

from tests.auditing.faults import (  # noqa: F401  (each puts its set-ups into FAULTS)
    adapters,
    modes,
    optimizers,
    selecting,
    state,
    training,
)
from tests.auditing.faults.fault import FAULTS as _FOUND
from tests.auditing.faults.fault import Fault
from tests.auditing.faults.untold import UNTOLD as UNTOLD

FAULTS: list[Fault] = sorted(_FOUND, key=lambda fault: fault.number)
