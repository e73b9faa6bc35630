"""What a step changes, by taking one in a sandbox and comparing bytes."""

from frostline.auditing.measuring.taking import measure as measure
