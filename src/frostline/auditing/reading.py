"""What a step changes, read off the modules: nothing is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from frostline.auditing.step import Step
from frostline.auditing.subject import Facts


def read(
    modules: Iterable[Facts],
    *,
    training: bool,
    moved: Iterable[int] = (),
    undecided: Mapping[int, str] | None = None,
) -> Step:
    """The step as modules and optimizer make it, if the forward runs every module.

    Args:
        modules: of the model.
        training: the modes after ``model.train()``, and not those of now.
        moved: ids of parameters that the optimizer moves.
        undecided: ids of those that it may move, each with what it depends on.
    """
    changed, open_ = set(moved), dict(undecided or {})
    for facts in modules:
        for tensor, why in _writes(facts, facts.after_train if training else facts.training):
            if why:
                open_[id(tensor)] = why
            else:
                changed.add(id(tensor))
    return Step("read", frozenset(changed), {k: v for k, v in open_.items() if k not in changed})


def _writes(facts: Facts, training: bool) -> Iterator[tuple[Tensor, str]]:
    """Each tensor that its forward writes, and what it depends on whether bytes change."""
    doing = facts.doing(training)
    known = facts.behaviour is not None and facts.behaviour.sure
    for write in doing.writes if doing is not None else ():
        tensor = getattr(facts.module, write.tensor, None)
        if not isinstance(tensor, Tensor):
            continue
        if not known:
            yield tensor, f"its own code in {facts.kind}"
        elif write.only_rounding:
            yield tensor, "rounding"
        else:
            yield tensor, ""
