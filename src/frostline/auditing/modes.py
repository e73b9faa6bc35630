"""In which mode every module would be after ``model.train()`` or ``model.eval()``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from frostline._state import collector_paused
from frostline.behaviours.untouched import untouched
from frostline.freezing.machinery import Held
from frostline.freezing.record import is_held


@dataclass(frozen=True)
class Modes:
    """The modes that a call leaves.

    Attributes:
        of: the mode of each module, by its id.
        raised: what the call raised, in words; then the modes are those of now.
    """

    of: dict[int, bool]
    raised: str = ""


def after(model: nn.Module, training: bool, modules: Sequence[nn.Module] | None = None) -> Modes:
    """The modes after ``model.train(training)``; nothing is changed.

    Where somebody overrides ``train``, it is called and all that it did is put back.

    Args:
        model: the root.
        training: the mode that is asked for.
        modules: all of its modules, where somebody walked it already.

    Example:
        >>> net = nn.Sequential(nn.Dropout()).eval()
        >>> after(net, True).of[id(net[0])], net[0].training
        (True, False)
    """
    modules = list(model.modules()) if modules is None else modules
    plain: dict[type, bool] = {}
    if all(_is_torchs(module, plain) for module in modules):
        return Modes({id(module): training and not is_held(module) for module in modules})
    now = {id(module): module.training for module in modules}
    with collector_paused(), untouched(model, None, values=True):
        try:
            model.train(training)
        except Exception as error:  # of the user's own train(): rules say what is wrong with it
            text = str(error).strip().partition("\n")[0]
            return Modes(now, f"model.train({training}) raised {type(error).__name__}: {text}")
        return Modes({id(module): module.training for module in modules})


def _is_torchs(module: nn.Module, known: dict[type, bool]) -> bool:
    """Whether ``train`` and ``eval`` of a module are torch's own; ``known`` is filled by class."""
    if "train" in vars(module) or "eval" in vars(module):
        return False
    cls = type(module)
    if cls not in known:
        bases = [base for base in cls.__mro__ if base not in (nn.Module, Held)]
        known[cls] = all("train" not in vars(b) and "eval" not in vars(b) for b in bases)
    return known[cls]
