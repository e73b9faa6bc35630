"""The report of an audit as a page, from its JSON; knows no torch."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from frostline._results import plural
from frostline.reports import audit_drift, audit_map
from frostline.reports.audit_findings import grouped
from frostline.reports.page import render
from frostline.reports.showing import listed, share, short, shown, size

_ROWS = 300  # rows of a table


def page(result: Mapping[str, Any]) -> str:
    """Self-contained HTML of what :meth:`AuditReport.to_dict` gives.

    It loads nothing and says so by its Content-Security-Policy, which names the one script and the
    styles by their SHA-256. Names reach it as text only.

    Args:
        result: ``version`` 1.
    """
    groups, group_of = grouped(result)
    return render(
        "audit.html",
        {
            "result": result,
            "verdict": _verdict(result),
            "found": _tallies(result),
            "rules": sorted({(group.code, shown(group.name)) for group in groups}),
            "claim": {**result["claim"], "text": shown(result["claim"]["text"], 400)},
            "groups": groups,
            "changes": _changes(result),
            "drift": audit_drift.plot(result["drift"]),
            "norms": [_norm(row) for row in result["norms"][:_ROWS]],
            "memory": _memory(result["counts"]),
            "data": audit_map.data(result, group_of),
            "shown": shown,
            "short": short,
            "share": share,
            "size": size,
            "high": audit_drift.high,
            "sha256": _sha256,
        },
    )


def _sha256(text: str) -> str:
    """The source expression of an inline script or style in a Content-Security-Policy (CSP 3)."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _by_severity(result: Mapping[str, Any]) -> dict[str, int]:
    found = {"error": 0, "warning": 0, "info": 0}
    for finding in result["findings"]:
        found[finding["severity"]] += 1
    return found


def _tallies(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How many findings of each severity there are, worst first, those with none left out."""
    several = {"error": "errors", "warning": "warnings", "info": "info"}
    return [
        {
            "severity": severity,
            "count": count,
            "noun": several[severity] if count > 1 else severity,
        }
        for severity, count in _by_severity(result).items()
        if count
    ]


def _verdict(result: Mapping[str, Any]) -> dict[str, str]:
    """The headline, and whether it is ``bad``, ``unsure`` or ``good``."""
    now, later = len(result["will_change"]), len(result["after_train"])
    maybe, found = len(result["undecided"]), _by_severity(result)
    if not result["claim"]["tensors"]:
        tone, title = "unsure", "Nothing is frozen"
    elif now:
        tone, title = "bad", f"{plural(now, 'frozen tensor')} will change"
    elif later:
        tone, title = "unsure", "Nothing frozen changes now"
        title += f", but {plural(later, 'tensor')} will after model.train()"
    elif maybe:
        tone, title = "unsure", f"{plural(maybe, 'frozen tensor')} may change"
    elif found["error"]:
        tone, title = "bad", "Nothing frozen will change, but training will go wrong"
    else:
        tone, title = "good" if result["ok"] else "unsure", "Nothing frozen will change"
    return {"tone": tone, "title": title}


def _changes(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What changes, by when, as patterns."""
    now, later = set(result["will_change"]), set(result["after_train"])
    kinds = [
        ("In the modes that the modules are in", list(result["will_change"])),
        ("Only after model.train()", [n for n in result["after_train"] if n not in now]),
    ]
    if now - later:
        kinds.append(("Not any more after model.train()", sorted(now - later)))
    reasons: dict[str, list[str]] = {}
    for name, why in result["undecided"].items():
        reasons.setdefault(f"Not decided: {shown(why, 400)}", []).append(name)
    return [
        {"when": when, "names": listed(names)}
        for when, names in [*kinds, *reasons.items()]
        if names
    ]


def _norm(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "names": listed(row["names"], most=6),
        "kind": shown(row["kind"], 80),
        "now": shown(row["now"], 400),
        "in_eval": shown(row["in_eval"], 400),
        "writes": [shown(write, 120) for write in row["writes"]],
    }


def _memory(counts: Mapping[str, Any]) -> dict[str, Any]:
    """What one training step keeps, activations left out, with shares in percent."""
    optimizer = counts["optimizer"]
    rows = [
        ("frozen", "Frozen parameters", counts["frozen"]["elements"], counts["frozen"]["bytes"]),
        (
            "trainable", "Trainable parameters", counts["trainable"]["elements"],
            counts["trainable"]["bytes"],
        ),
        ("buffers", "Buffers", counts["buffers"]["elements"], counts["buffers"]["bytes"]),
        ("gradients", "Gradients", counts["trainable"]["elements"], counts["gradient_bytes"]),
    ]  # fmt: skip
    if optimizer is not None:
        name = f"State of {shown(optimizer, 80)}"
        rows.append(("optimizer", name, None, counts["optimizer_bytes"]))
    total = sum(nbytes or 0 for *_, nbytes in rows)
    shares, before = [], 0.0
    for key, name, elements, nbytes in rows:
        part = 100 * (nbytes or 0) / total if total else 0.0
        shares.append(
            {"key": key, "name": name, "elements": elements, "bytes": nbytes,
             "from": round(before, 4), "share": round(part, 4)}
        )  # fmt: skip
        before += part
    return {
        "rows": shares,
        "total": total,
        "whole": all(row["bytes"] is not None for row in shares),
    }
