"""Before a run: what will change although it looks frozen, why, and the code that mends it."""

from frostline.auditing.audit import audit as audit
