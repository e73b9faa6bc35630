"""Results for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_json(result: Mapping[str, Any]) -> str:
    r"""JSON with a final newline; floats round-trip, and what JSON cannot hold is refused.

    Args:
        result: plain types, with a ``version``.

    Raises:
        ValueError: there is no ``version``, or a number is NaN or infinite.

    Example:
        >>> to_json({"version": 1, "ok": True})
        '{\n  "version": 1,\n  "ok": true\n}\n'
    """
    if "version" not in result:
        raise ValueError(
            "expected a `version` in the result, so that readers can tell formats apart"
        )
    return json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
