"""Every tensor that goes into a module or comes out of it, shown on its way and exchangeable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# Which call it is: for each call around it and for itself, how many calls its caller had made
# before, and whom it calls. Where two runs differ inside of a call, the calls around still agree.
Path: TypeAlias = tuple[tuple[int, int], ...]


class Site(NamedTuple):
    """A place in a run that is found again in another run.

    Attributes:
        path: the call.
        side: whether the tensor goes into it or comes out.
        leaf: which of its arguments or results.
    """

    path: Path
    side: Literal["in", "out"]
    leaf: int


@dataclass(frozen=True, eq=False)
class Passing:
    """A tensor on its way.

    Attributes:
        site: where.
        owner: the module whose code made it, or took it in hand before it was passed on; None is
            the code outside of the model.
        number: which call of the owner this is in the run, from 1.
        call: the module that is called.
    """

    site: Site
    owner: nn.Module | None
    number: int
    call: nn.Module


Visit: TypeAlias = Callable[[Passing, Tensor], Tensor]


@dataclass(eq=False)
class _Frame:
    """A call that is running, and how many it has made."""

    path: Path
    module: nn.Module | None
    number: int = 1
    made: int = 0


class Calls:
    """Shows a run of a model to ``visit``: what goes into each module, and what comes out.

    Floating-point tensors in tuples, lists, dicts and other containers that torch knows. What
    ``visit`` returns goes on in the tensor's place. Random numbers are drawn anew from each call
    on, so that they do not depend on how many were drawn before. Hooks and generators stay so:
    watch inside of :func:`frostline.behaviours.untouched.untouched`, which puts them back.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> seen = []
        >>> def note(passing, tensor):
        ...     seen.append((type(passing.call).__name__, passing.site.side))
        ...     return tensor
        >>> calls = Calls(net, note)
        >>> _ = net(torch.zeros(1, 2))
        >>> seen[:3]
        [('Sequential', 'in'), ('Linear', 'in'), ('Linear', 'out')]
    """

    def __init__(self, model: nn.Module, visit: Visit) -> None:
        self._visit = visit
        self._frames = [_Frame((), None)]
        self._numbers: Counter[int] = Counter()
        for module in model.modules():
            # By the class, since the method of a ScriptModule refuses.
            nn.Module.register_forward_pre_hook(module, self._enter, with_kwargs=True)
            nn.Module.register_forward_hook(module, self._leave)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        caller = self._frames[-1]
        self._numbers[id(module)] += 1
        path = (*caller.path, (caller.made, id(module)))
        caller.made += 1
        frame = _Frame(path, module, self._numbers[id(module)])
        changed = self._shown((args, named), frame, "in", caller)
        self._frames.append(frame)
        return changed

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        # Calls that were left by an exception, which somebody caught, are still on top.
        while (frame := self._frames.pop()).module is not module:
            pass
        return self._shown(output, frame, "out", frame)

    def _shown(self, value: Any, frame: _Frame, side: Literal["in", "out"], owner: _Frame) -> Any:
        _draw_anew(hash((side == "in", *(number for number, _ in frame.path))))
        leaves, shape = pytree.tree_flatten(value)
        changed = False
        for i, leaf in enumerate(leaves):
            if is_dense_float(leaf):
                assert frame.module is not None  # noqa: S101
                site = Site(frame.path, side, i)
                passing = Passing(site, owner.module, owner.number, frame.module)
                leaves[i] = self._visit(passing, leaf)
                changed |= leaves[i] is not leaf
        return pytree.tree_unflatten(leaves, shape) if changed else None


def _draw_anew(seed: int) -> None:
    torch.default_generator.manual_seed(seed % 2**63)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed % 2**63)


def is_dense_float(value: Any) -> bool:
    """Whether it is a plain tensor of real or complex floating-point numbers."""
    if type(value) not in (Tensor, nn.Parameter) or value.is_nested or value.is_meta:
        return False
    return value.layout is torch.strided and (value.is_floating_point() or value.is_complex())
