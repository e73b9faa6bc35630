"""ScriptReport: what a script did to what was frozen in it, over all of its models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from frostline._results import Result
from frostline.guarding.report import GuardReport
from frostline.guarding.scripts import telling as script_telling


@dataclass(frozen=True)
class Model:
    """A model that the script trained or called.

    Attributes:
        name: its class, with a number where there are several of one class.
        report: what the guard saw.
    """

    name: str
    report: GuardReport

    @property
    def moved(self) -> bool:
        """Whether something frozen changed."""
        return bool(self.report.drift)


@dataclass(eq=False)
class ScriptReport(Result):
    """What was seen while a script ran.

    Attributes:
        script: as it was named on the command line.
        arguments: what was passed on to it.
        exit: the exit code of the script itself.
        raised: class of the exception that ended it, if one did.
        stopped_after: the ``--steps`` that ended it early, if they did.
        models: every model that was trained; those that were only called, if something moved in
            them or if none was trained.
        only_called: how many models were left out.
        unwatched: models that could not be watched, and why.
        unmatched: why selectors of ``--frozen`` matched in no model.
    """

    script: str
    arguments: Sequence[str]
    exit: int
    raised: str | None = None
    stopped_after: int | None = None
    models: list[Model] = field(default_factory=list)
    only_called: int = 0
    unwatched: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)

    @property
    def moved(self) -> list[Model]:
        """The models in which something frozen changed."""
        return [model for model in self.models if model.moved]

    @property
    def ok(self) -> bool:
        """Whether nothing frozen changed in any model, and all of them were watched."""
        return not (self.moved or self.unwatched or self.unmatched)

    def __str__(self) -> str:
        return script_telling.report(self)

    def findings(self) -> str:
        """Only what moved; empty if nothing did."""
        return script_telling.findings(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON; numbers that JSON does not know become words."""
        return {
            "version": 1,
            "ok": self.ok,
            "script": self.script,
            "arguments": list(self.arguments),
            "exit": self.exit,
            "raised": self.raised,
            "stopped_after": self.stopped_after,
            "models": [
                {"model": model.name, **_plain(model.report.to_dict())} for model in self.models
            ],
            "only_called": self.only_called,
            "unwatched": dict(self.unwatched),
            "unmatched": list(self.unmatched),
        }


def named(found: Sequence[tuple[str, GuardReport]]) -> tuple[list[Model], int]:
    """The models worth telling of, with names of their own, and how many are left out."""
    trained = [entry for entry in found if not entry[1].nothing_ran or entry[1].drift]
    told = trained or list(found)
    classes = [name for name, _ in told]
    seen: dict[str, int] = {}
    models = []
    for name, report in told:
        seen[name] = seen.get(name, 0) + 1
        models.append(Model(name if classes.count(name) == 1 else f"{name} {seen[name]}", report))
    return models, len(found) - len(told)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
