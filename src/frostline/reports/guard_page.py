"""The report of ``frostline guard`` as a page, from its JSON; knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from frostline._results import plural
from frostline.reports.page import render


def page(result: Mapping[str, Any]) -> str:
    """Self-contained HTML of what :meth:`ScriptReport.to_dict` gives.

    Args:
        result: ``version`` 1, with ``script``, ``exit`` and ``models``.
    """
    models = [_model(model) for model in result["models"]]
    return render(
        "guard.html",
        {
            "result": result,
            "command": " ".join([result["script"], *result["arguments"]]),
            "moved": sum(len(model["drift"]) for model in models),
            "frozen": sum(model["frozen"] for model in models),
            "steps": max((model["steps"] for model in models), default=0),
            "idle": sum(len(model["idle"]) for model in models),
            "models": models,
        },
    )


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    changes = [{**change, "told": _told(change)} for change in model["changes"]]
    drift = [change for change in changes if change["severity"] == "drift"]
    return {
        **model,
        "size": _size(model["bytes"]),
        "drift": drift,
        "causes": _by_cause(drift),
        "others": [change for change in changes if change["severity"] != "drift"],
        "idle_by_reason": _by_reason(model["idle"]),
        "tiers": [{**tier, "told": _tier(tier)} for tier in model["tiers"]],
    }


def _told(change: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a change as words; empty where nobody knows."""
    elements, changed, by = change["elements"], change["changed_elements"], change["max_abs"]
    if changed is None:
        much = "" if change["kind"] == "value" else str(change["kind"])
    else:
        much = f"{changed:,}" if elements is None else f"{changed:,} of {elements:,}"
    return {
        "much": much,
        "by": "" if by is None else by if isinstance(by, str) else f"{by:.3g}",
        "step": _step(change["since"], change["step"]),
    }


def _step(since: int | None, step: int | None) -> str:
    if step is None:
        return ""
    if since is not None and since + 1 < step:
        return f"{since + 1}–{step}"
    return str(step) if step else "before 1"


def _by_cause(changes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for change in changes:
        groups.setdefault((change["cause"], change["mend"], change["culprit"]), []).append(change)
    return [
        {"cause": cause, "mend": mend, "culprit": culprit, "changes": members}
        for (cause, mend, culprit), members in groups.items()
    ]


def _by_reason(idle: Iterable[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    reasons: dict[str, list[str]] = {}
    for entry in idle:
        reasons.setdefault(entry["reason"], []).append(entry["name"])
    return list(reasons.items())


def _tier(tier: Mapping[str, Any]) -> dict[str, str]:
    each = f", {1e3 * tier['seconds'] / tier['looks']:.2g} ms each" if tier["looks"] else ""
    return {
        "size": _size(tier["nbytes"]) if tier["nbytes"] else "",
        "looks": f"{plural(tier['looks'], 'look')}{each}" if tier["ran"] else "did not run",
    }


_UNITS: Sequence[str] = ("B", "KiB", "MiB", "GiB", "TiB")


def _size(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.3g} {_UNITS[unit]}"
