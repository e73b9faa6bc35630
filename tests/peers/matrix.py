"""Who holds what: what becomes of a frozen part, for each way to freeze, action and kind.

A cell is one run: a net is built, its part frozen in one way, one action is done, and every
parameter and buffer of the part is compared, by name, with its bytes from before the freeze.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning.pytorch.utilities.model_helpers import _ModuleMode
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.optim import Optimizer

from tests.freezing import actions as hold
from tests.freezing.kinds import KINDS, Net, build, step
from tests.freezing.test_hold_table import State, copied, kinds_for, prepare, raw, state_of
from tests.peers.ways import Way
from tests.zoo import seeded

HOLDS = "holds"
Outcomes = dict[str, str]  # by kind


def modes_around_validation(net: Net, x: Tensor, _: Any) -> nn.Module:
    """As Lightning: note every mode, eval, write every mode back; the hold table writes True."""
    net.train()
    modes = _ModuleMode()
    modes.capture(net)
    net.eval()
    net(x)
    modes.restore(net)
    step(net, x)
    step(net, x)
    return net


_RESTORED = "modes restored one by one"
ACTIONS = hold.ACTIONS | {_RESTORED: replace(hold.ACTIONS[_RESTORED], run=modes_around_validation)}
# Here torch calls `train()`, and the loop cannot come in between.
TRAIN_IS_NOT_THE_LOOPS = {"update_bn"}


# --- a cell ------------------------------------------------------------------------------------


def cell(way: Way, kind: str, action: str) -> str:
    """`holds`, `moved NAME` or `missing NAME` of the first such tensor, or `raises ERROR`."""
    with _apart():
        net, x, optimizer = prepare(kind, ACTIONS[action])
        before = copied(state_of(net))
        try:
            _freeze(way, net, optimizer)
            with _loop(way, action):
                after = ACTIONS[action].run(net, x, optimizer)
        except Exception as error:
            return f"raises {_said(error)}"
        return verdict(before, [state_of(net), state_of(after)])


def verdict(before: State, afters: list[State]) -> str:
    """What became of the tensors in the first state in which one is another."""
    for after in afters:
        if moved := [n for n, old in before.items() if n in after and differ(old, after[n])]:
            return f"moved {moved[0]}"
        if missing := [name for name in before if name not in after]:
            return f"missing {missing[0]}"
    return HOLDS


def differ(old: Tensor, new: Tensor) -> bool:
    """Whether dtype, shape or a byte is another."""
    if old.dtype != new.dtype or old.shape != new.shape:
        return True
    if is_functorch_wrapped_tensor(new):  # left behind by vmap, which alone can read it
        return True
    return old.numel() > 0 and not torch.equal(raw(old), raw(new))


def _freeze(way: Way, net: Net, optimizer: Optimizer | None) -> Any:
    handle = way.freeze(net, optimizer)
    for group in optimizer.param_groups if optimizer and way.new_optimizer else ():
        group["params"] = [p for p in group["params"] if p.requires_grad]
    return handle


def _said(error: Exception) -> str:
    """An error in a few words, without what differs from run to run."""
    text = str(error).partition("\n")[0]
    return re.sub(r"0x[0-9a-f]+", "0x…", f"{type(error).__name__}: {text}")[:100]


@contextmanager
def _apart() -> Iterator[None]:
    """The same random numbers for every cell; a warning decides nothing."""
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _loop(way: Way, action: str) -> Iterator[None]:
    """The training loop as the way's documentation wants it."""

    def train(net: Net, mode: bool = True) -> Net:
        nn.Module.train(net, mode)
        if mode and way.at_epoch and action not in TRAIN_IS_NOT_THE_LOOPS:
            way.at_epoch(net)
        return net

    makers = {name: _of_trainable(make) for name, make in hold.OPTIMIZERS.items()}
    with (
        patch.object(Net, "train", train),
        patch.dict(hold.OPTIMIZERS, makers if way.new_optimizer else {}),
    ):
        yield


def _of_trainable(make: hold.Make) -> hold.Make:
    return lambda parameters: make([p for p in parameters if p.requires_grad])


# --- what a freeze does to the model itself ----------------------------------------------------


def eval_output(way: Way, kind: str) -> str:
    """Whether the part gives the same bits in eval mode before and after the freeze."""
    with _apart():
        return _same(_output(kind, training=False), _output(kind, way, training=False))


def train_output(way: Way, kind: str) -> str:
    """Whether a frozen part gives the same bits after `model.train()` as after `model.eval()`."""
    with _apart():
        return _same(_output(kind, way, training=True), _output(kind, way, training=False))


def _output(kind: str, way: Way | None = None, *, training: bool) -> Tensor:
    net = build(kind)
    if way is None:
        return run_part(net.train(training), kind)
    _freeze(way, net, None)
    with _loop(way, ""):
        return run_part(net.train(training), kind)


@torch.no_grad()
def run_part(net: Net, kind: str) -> Tensor:
    with seeded(1):
        out: Tensor = net.part(net.stem(KINDS[kind].inputs()))
    return out


def _same(one: Tensor, two: Tensor) -> str:
    return "differs" if differ(one, two) else HOLDS


class Look(NamedTuple):
    """All that a freeze may touch, by name."""

    content: State
    flags: dict[str, bool]
    classes: dict[str, type]
    settings: dict[str, tuple[object, ...]]
    objects: dict[str, Tensor]


def look(net: Net) -> Look:
    tensors, modules = state_of(net), dict(net.named_modules())
    settings = ("training", "momentum", "eps", "track_running_stats")
    return Look(
        copied(tensors),
        {name: tensor.requires_grad for name, tensor in tensors.items()},
        {name: type(module) for name, module in modules.items()},
        {n: tuple(getattr(m, s, None) for s in settings) for n, m in modules.items()},
        {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)},
    )


def undone(way: Way, kind: str, *, frozen_before: bool = False) -> str:
    """Whether freezing and taking it back leaves all as it was."""
    assert way.undo is not None
    with _apart():
        net = build(kind)
        for parameter in list(net.part.parameters())[:1] if frozen_before else ():
            parameter.requires_grad_(False)
        before = look(net)
        way.undo(net, _freeze(way, net, None))
        return back(before, look(net))


def back(before: Look, after: Look) -> str:
    """`holds`, or what is not as it was."""
    found = verdict(before.content, [after.content])
    if found != HOLDS:
        return found
    kinds: list[tuple[str, Callable[[Look], dict[str, Any]]]] = [
        ("class", lambda one: one.classes),
        ("requires_grad", lambda one: one.flags),
        ("settings", lambda one: one.settings),
    ]
    for word, take in kinds:
        if names := [n for n, old in take(before).items() if take(after).get(n) != old]:
            return f"{word} {names[0]}"
    objects = [n for n, p in before.objects.items() if after.objects.get(n) is not p]
    return f"object {objects[0]}" if objects else HOLDS


AS_IN_EVAL = "output after `train()` as after `eval()`"
CHECKS: dict[str, Callable[..., str]] = {
    "eval output as before the freeze": eval_output,
    AS_IN_EVAL: train_output,
}
UNDOS: dict[str, Callable[..., str]] = {
    "undo brings all back": undone,
    "undo, where one parameter was frozen before": partial(undone, frozen_before=True),
}


# --- the whole ---------------------------------------------------------------------------------


def tried(row: str) -> list[str]:
    """The kinds of a row: what torch cannot pickle is not asked for a pickle."""
    return kinds_for(row) if row in ACTIONS else list(KINDS)


def checks_of(way: Way) -> dict[str, Callable[..., str]]:
    return CHECKS | (UNDOS if way.undo else {})


def row(way: Way, name: str, kinds: list[str] | None = None) -> Outcomes:
    """What becomes of each kind that can be tried, or of `kinds`, by an action or in a check."""
    ask = partial(cell, way, action=name) if name in ACTIONS else partial(checks_of(way)[name], way)
    return {kind: ask(kind=kind) for kind in tried(name) if kinds is None or kind in kinds}


def rows_of(way: Way) -> list[str]:
    return [*ACTIONS, *checks_of(way)]


def computed(way: Way) -> dict[str, Outcomes]:
    """Every action and every check, every kind."""
    return {name: row(way, name) for name in rows_of(way)}
