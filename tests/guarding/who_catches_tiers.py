"""The guard's tiers as ways of checking, each alone with the others switched off."""

from __future__ import annotations

from collections.abc import Callable

from frostline.guarding.arguments import Proof
from frostline.guarding.engine import Engine, Suspect
from frostline.guarding.identity import ROTATION
from frostline.guarding.target import resolve
from tests.guarding.who_catches_changes import Live

Look = Callable[[Engine], list[Suspect]]


def identity(engine: Engine) -> list[Suspect]:
    """Within a whole rotation, as it is announced."""
    return [s for _ in range(ROTATION) for s in engine._look_at_identity() if s.kind != "replaced"]


def pages(engine: Engine) -> list[object]:
    return list(engine.pages.look()) if engine.pages is not None else []


def content(engine: Engine) -> list[object]:
    """Within the steps that it announces, plus one."""
    engine.patrol.run(None)
    engine.patrol.run(1e-3)
    return [r for _ in range((engine.patrol.announced or 0) + 1) for r in engine.patrol.run(1e-3)]


def full_check(engine: Engine) -> list[Suspect]:
    return [s for s in engine.full_check() if s.kind != "replaced"]


def alone(look: Callable[[Engine], list], proof: Proof) -> Callable[[Live], Callable[[], bool]]:
    def watch(live: Live) -> Callable[[], bool]:
        engine = Engine(resolve(live.model, "**"), overhead=0.01, proof=proof)

        def sees() -> bool:
            try:
                return bool(look(engine))
            finally:
                engine.close()

        return sees

    return watch


TIERS = {
    "tier: identity": alone(identity, "content"),
    "tier: pages": alone(pages, "auto"),
    "tier: content": alone(content, "content"),
    "tier: full check": alone(full_check, "content"),
}
