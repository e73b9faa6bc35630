"""Random set-ups: a few lines of code, drawn from a seed.

The model, the freeze, the optimizer, the modes, and what people do around them.
`print(SetUp.of(7))` shows it, `SetUp.of(7).build()` runs it.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.oracle_models import KNOWN, MODELS, Known

SEEDS = tuple(range(300))
# Those that take least time for many models, optimizers and findings.
# fmt: off
FAST = (
    5, 8, 20, 23, 33, 41, 43, 47, 57, 60, 73, 78, 88, 90, 96, 99, 105, 108, 111, 117, 118, 125,
    146, 150, 180, 182, 187, 188, 230, 234, 243, 244, 245, 250, 254, 257, 261, 267, 281, 295,
)
# fmt: on

OPTIMIZERS = (
    "SGD({}, lr=0.1)",
    "SGD({}, lr=0.1, momentum=0.9)",
    "SGD({}, lr=0.1, weight_decay=0.1)",
    "SGD({}, lr=0.1, momentum=0.9, nesterov=True, maximize=True)",
    "SGD({}, lr=0.0)",
    "Adam({}, lr=0.01)",
    "Adam({}, lr=0.01, amsgrad=True, weight_decay=0.1)",
    "AdamW({}, lr=0.01, foreach=True)",
    "AdamW({}, lr=0.01, fused=True)",
    "AdamW({}, lr=0.0, weight_decay=0.1)",
    "RMSprop({}, lr=0.01, momentum=0.5)",
    "Adagrad({}, lr=0.01)",
    "Adadelta({}, lr=0.1)",
    "Adamax({}, lr=0.01)",
    "NAdam({}, lr=0.01)",
    "RAdam({}, lr=0.01)",
    "Adafactor({}, lr=0.01)",
    "Rprop({}, lr=0.01)",
    "LBFGS({}, lr=0.1, max_iter=2)",
)
OVER = ("model.parameters()", "[p for p in model.parameters() if p.requires_grad]", "HEAD")
FREEZES = (
    'PART.requires_grad_(False)',
    'for n, p in model.named_parameters(): p.requires_grad_(not n.startswith("NAME."))',
    'for p in model.parameters(): p.requires_grad_(False)\nHEAD.requires_grad_(True)',
    'for m in NORMS(model): m.requires_grad_(False)',
    'frozen = "NAME"',
    'PART.requires_grad_(False)\nfrozen = ["NAME", "OTHER"]',
    'model.requires_grad_(False)',
    'part = fl.freeze(model, "NAME")',
    'part = fl.freeze(model, "NAME", mode="follow")',
    'part = fl.freeze(model, "NAME", stats="batch")',
    'part = fl.freeze(model, "NAME", stats="update")',
    'PART.requires_grad_(False)\npart = fl.freeze(model, fl.FLAGGED)',
    'PART.requires_grad = False',
    'for p in PART.parameters(): p.require_grad = False',
)  # fmt: skip
PASTS = (
    "",
    "",
    "take_step(model, batch, loss, optimizer)",
    "take_step(model, batch, loss, optimizer); optimizer.zero_grad()",
    "take_step(model, batch, loss, optimizer); optimizer.zero_grad(set_to_none=False)",
    "loss(model, batch).backward()",
)
MODES = (
    "model.train()",
    "model.train()",
    "model.eval()",
    "model.train(); PART.eval()",
    "PART.eval(); model.train()",
    "for m in NORMS(PART): m.eval()",
    "model.eval(); HEAD.train()",
    "model.eval(); PART.train()",
)
FLAGS = (
    "",
    "",
    "",
    "",
    "for m in NORMS(PART): m.momentum = 0.0",
    "for m in NORMS(PART): m.momentum = None",
    "for m in NORMS(PART): m.track_running_stats = False",
    "for p in PART.parameters(): p.requires_grad_(True)",
    "next(PART.parameters(), torch.zeros(())).requires_grad_(True)",
    "PART.train = lambda mode=True: PART",
    "batch = first_of(batch)",
)


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]


def first_of(batch: Any) -> Any:
    """A batch of the first sample alone."""
    if isinstance(batch, Tensor):
        return batch[:1]
    if isinstance(batch, dict):
        return {name: value[:1] for name, value in batch.items()}
    return tuple(value[:1] for value in batch)


def take_step(
    model: nn.Module, batch: Any, loss: Any, optimizer: torch.optim.Optimizer | None
) -> None:
    """Forward, backward, `optimizer.step()`; one that needs a closure gets the usual one."""
    cleared = True

    def closure() -> Tensor:
        nonlocal cleared
        if not cleared and optimizer is not None:
            optimizer.zero_grad()
        cleared = False
        found: Tensor = loss(model, batch)
        if found.requires_grad or optimizer is not None:
            found.backward()  # raises where nothing is trainable, and then nothing is stepped
        return found

    if optimizer is None:
        closure()
    elif inspect.signature(optimizer.step).parameters["closure"].default is None:
        closure()
        optimizer.step()
    else:
        optimizer.step(closure)


@dataclass(frozen=True)
class SetUp:
    """A model with what somebody did to it.

    Attributes:
        seed: what it was drawn from.
        code: the lines, to be run with the names of :meth:`build`.
    """

    seed: int
    code: str

    @classmethod
    def of(cls, seed: int) -> SetUp:
        """The set-up that a seed stands for."""
        return cls(seed, "\n".join(_lines(random.Random(seed))))

    def build(self) -> Built:
        """Run the lines, from the same random state at every call."""
        torch.manual_seed(self.seed)
        names: dict[str, Any] = {
            "torch": torch, "fl": fl, "MODELS": MODELS, "NORMS": norms, "first_of": first_of,
            "take_step": take_step, "frozen": None, "optimizer": None,
        }  # fmt: skip
        exec(self.code, names)
        kept = ("model", "batch", "loss", "optimizer", "frozen")
        return Built(*(names[name] for name in kept))

    def __str__(self) -> str:
        return f"# seed {self.seed}\n{self.code}"


@dataclass(eq=False)
class Built:
    """A set-up after its lines have run."""

    model: nn.Module
    batch: Any
    loss: Any
    optimizer: torch.optim.Optimizer | None
    frozen: Any


def _lines(draw: random.Random) -> Iterator[str]:
    name = draw.choice([*KNOWN, *(n for n in KNOWN if not n.startswith("kind"))])
    known = KNOWN[name]
    freeze = draw.choice([f for f in FREEZES if _fits(f, known)])
    part = draw.choice(known.parts)
    optimizer = _optimizer(draw, freeze)
    early = optimizer is not None and draw.random() < 0.5
    lines = [f'model, batch, loss = MODELS["{name}"]()']
    if early:
        lines += [f"optimizer = {optimizer.format('model.parameters()')}", draw.choice(PASTS)]
    lines += [*_freeze(freeze, early), *_around(draw, known, freeze)]
    if optimizer is not None and not early:
        over = draw.choice(OVER) if "model.requires_grad_(False)" not in freeze else OVER[0]
        lines.append(f"optimizer = {optimizer.format(over)}")
    for line in lines:
        if line:
            yield _named(line, part, known)


def _fits(freeze: str, known: Known) -> bool:
    """A part refuses half of a tied tensor, and a selector what is not there."""
    return not ((known.tied and "fl.freeze" in freeze) or (known.bare and "FLAGGED" in freeze))


def _optimizer(draw: random.Random, freeze: str) -> str | None:
    if draw.random() < 0.1:
        return None
    # A part refuses LBFGS, which writes to what has no gradient.
    allowed = [o for o in OPTIMIZERS if not ("LBFGS" in o and "fl.freeze" in freeze)]
    return f"torch.optim.{draw.choice(allowed)}"


def _freeze(freeze: str, early: bool) -> list[str]:
    if early and 'fl.freeze(model, "NAME")' in freeze:
        freeze = freeze.replace('"NAME")', '"NAME", optimizer=optimizer)')
    return freeze.split("\n")


def _around(draw: random.Random, known: Known, freeze: str) -> list[str]:
    mode, flag = draw.choice(MODES), draw.choice(FLAGS)
    found = [mode, flag] if "batch" in flag or "train" in flag else [flag, mode]
    if known.checkpoints and draw.random() < 0.4:
        found.append('model.activation_checkpointing_enable({"use_reentrant": False})')
    # A part has a way of its own for each of these, and says so.
    return [
        line for line in found if "fl.freeze" not in freeze or "PART" not in line or "eval" in line
    ]


def _named(line: str, part: str, known: Known) -> str:
    other = next((p for p in known.parts if not part.startswith(p)), known.head)
    line = line.replace("OTHER", other).replace("NAME", part)
    line = line.replace("lr=0.1, max_iter", "lr=0.1, max_iter").replace(
        "(HEAD, ", f'(model.get_submodule("{known.head}").parameters(), '
    )
    for word, name in (("PART", part), ("HEAD", known.head)):
        line = line.replace(word, f'model.get_submodule("{name}")')
    return line
