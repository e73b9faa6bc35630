"""The adapters of PEFT in a model, found without importing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from frostline.auditing.subject import Subject
from frostline.freezing.holders import full_name

_LAYER = "peft.tuners.tuners_utils.BaseTunerLayer"


def has_adapters(subject: Subject) -> bool:
    """Whether any layer carries an adapter."""
    kinds = {type(facts.module) for facts in subject.modules}
    return any(full_name(base) == _LAYER for kind in kinds for base in kind.__mro__)


def configurations(subject: Subject) -> Iterator[tuple[str, str, Any]]:
    """Each adapter's configuration, with the module that keeps it and the adapter's name."""
    seen: set[int] = set()
    for facts in subject.modules:
        kept = vars(facts.module).get("peft_config")
        for name, configuration in kept.items() if isinstance(kept, dict) else ():
            # The tuner and the model inside it keep the same object.
            if id(configuration) not in seen:
                seen.add(id(configuration))
                yield facts.name, str(name), configuration
