"""The result of ``coupling``: who couples samples, and what follows for accumulation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from frostline._results import Result
from frostline.probing.probe import Reduction

LOSS = "compute_loss"
STATE = "state it keeps"


@dataclass(frozen=True)
class Coupler:
    """A module by whose doing a sample depends on others: in its batch, or in a batch before.

    Attributes:
        name: full name of the module, ``""`` for the model itself; ``"compute_loss"`` for the loss.
        kind: name of its class.
        what: which of its tensors depends on several samples; ``"state it keeps"`` if that is what
            it wrote in the forward before.
        calls: in which of its calls in a forward, from 1.
        effect: largest change of another sample's numbers when half of the batch is replaced, in
            root mean squares of the tensor (of the loss: a share of it); None where a number
            became infinite or none.
        joinable: whether it couples by calls of batch norm alone (or by the power iteration of
            spectral norm), which ``fl.accumulate`` joins.
        holdable: whether it is a norm with running statistics to use instead.
    """

    name: str
    kind: str
    what: str
    calls: tuple[int, ...]
    effect: float | None
    joinable: bool
    holdable: bool


@dataclass(frozen=True, eq=False)
class Coupling(Result):
    """Whether gradient accumulation equals the big batch for a model in its present modes.

    Attributes:
        model: name of the model's class.
        modules: how many modules were watched.
        samples: how many samples stood in the batch.
        called: how the model was run.
        couplers: who couples samples, in the order of the forward.
        reduction: how the loss grows with samples that are there twice: not at all (a mean),
            twofold (a sum), or otherwise; None without ``compute_loss``.
        undecided: what could not be told, in words.
        random: how many modules draw random numbers in these modes.
    """

    model: str
    modules: int
    samples: int
    called: str
    couplers: tuple[Coupler, ...]
    reduction: Reduction | None
    undecided: tuple[str, ...]
    random: int

    @property
    def ok(self) -> bool:
        """Whether accumulation, each microbatch weighted by its samples, equals the big batch."""
        return not self.couplers and not self.undecided

    @property
    def exact(self) -> bool:
        """Whether it does with ``fl.accumulate(..., batchnorm="exact")``."""
        return not self.undecided and all(coupler.joinable for coupler in self.couplers)

    @property
    def names(self) -> list[str]:
        """Full names of the modules that couple samples."""
        return [coupler.name for coupler in self.couplers if coupler.name != LOSS]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "version": 1,
            "ok": self.ok,
            "exact": self.exact,
            "model": self.model,
            "modules": self.modules,
            "samples": self.samples,
            "called": self.called,
            "couplers": [
                {**asdict(coupler), "calls": list(coupler.calls)} for coupler in self.couplers
            ],
            "reduction": self.reduction,
            "undecided": list(self.undecided),
            "random": self.random,
        }

    def __str__(self) -> str:
        from frostline.probing.telling import text

        return text(self)
