"""The whole story, chapter by chapter, and its verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from frostline._results import Result
from frostline.attribution import Attribution, attribute
from frostline.demo import telling
from frostline.demo.branches import Scene, Tick, Witness, branches_story
from frostline.demo.document import DocumentStory, document_story
from frostline.demo.evidence import Counterfactual, Why, counterfactual, why
from frostline.demo.reproducible import reproducible
from frostline.demo.settings import Settings

HOLDING = ("eval_each_epoch", "freeze")
CONTROL = "flag"


@dataclass(frozen=True, eq=False)
class Story(Result):
    """What ``frostline demo`` found.

    Attributes:
        settings: what it was run with.
        picture: the fixed test image of the first seed, 8 rows of 8 values in [0, 1].
        document: the document's network, both ways.
        hard: two branches, the second on inverted digits.
        mild: two branches, the second on the same digits.
        why: what moved and by which formula.
        counterfactual: the statistics put back alone.
        attribution: whose fault it was.
    """

    settings: Settings
    picture: list[list[float]]
    document: DocumentStory
    hard: Scene
    mild: Scene
    why: Why
    counterfactual: Counterfactual
    attribution: Attribution

    @property
    def failures(self) -> list[str]:
        """What did not come out as the story says, in plain words; empty if all did."""
        flag, hold = self.document.flag.first_change, self.document.freeze.first_change
        checks = [
            (flag is not None, "control: the document's network kept its output by flag only"),
            (hold is None, "fl.freeze: the document's network changed its output"),
            (self.counterfactual.same_bits, "the statistics alone did not bring the output back"),
        ]
        for scene in (self.hard, self.mild):
            drifted = scene.always_changes(CONTROL)
            checks.append((drifted, f"control: the output stayed by flag only, {scene.title}"))
            for way in scene.ways:
                kept = way.key not in HOLDING or scene.first_change(way.key) is None
                checks.append((kept, f"{way.title}: the output changed, {scene.title}"))
        return [failure for passed, failure in checks if not passed]

    @property
    def ok(self) -> bool:
        """Whether the control drifted and every hold held."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON. Floats are exact: two runs are equal if their JSON is."""
        return {
            "version": 1,
            "ok": self.ok,
            "failures": self.failures,
            "settings": self.settings.to_dict(),
            "fixed_input": self.picture,
            "document": self.document.to_dict(),
            "inverted": self.hard.to_dict(),
            "same": self.mild.to_dict(),
            "why": self.why.to_dict(),
            "counterfactual": self.counterfactual.to_dict(),
            "attribution": self.attribution.to_dict(),
        }

    def __str__(self) -> str:
        parts = (
            telling.document(self.document),
            telling.branches(self.hard, self.mild),
            telling.why(self.why),
            telling.whose_fault(self.counterfactual, self.attribution),
            telling.your_turn(),
        )
        return "\n\n".join(parts)


def tell_story(
    settings: Settings,
    *,
    say: Callable[[str], object] = lambda text: None,
    tick: Tick = lambda step: None,
) -> Story:
    """Run the story; leave random generators, threads and flags as they were.

    Args:
        settings: how much of it.
        say: called with the text of each chapter as soon as it is known.
        tick: called with a few words before each training; :func:`branches.steps` says how often.

    Example:
        >>> tell_story(Settings(seeds=1, epochs=1)).ok
        True
    """
    with reproducible():
        document = document_story(settings)
        say(telling.document(document))
        hard, mild, witness = branches_story(settings, tick)
        say(telling.branches(hard, mild))
        reasons = why(witness)
        say(telling.why(reasons))
        mended, fault = counterfactual(witness), _attribution(witness)
        say(telling.whose_fault(mended, fault))
    picture: list[list[float]] = witness.test.images[0, 0].tolist()
    return Story(settings, picture, document, hard, mild, reasons, mended, fault)


def _attribution(witness: Witness) -> Attribution:
    batch = (witness.test.images, witness.test.labels)
    return attribute(witness.before, witness.model.state_dict(), witness.model, batch)
