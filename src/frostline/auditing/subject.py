"""What rules look at: a model with all that is known of it, gathered once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._names import NamedTensor, join
from frostline.auditing.step import Step
from frostline.behaviours import Behaviour, Doing

if TYPE_CHECKING:
    from frostline.auditing.claim import Claim
    from frostline.auditing.probes import Probes


@dataclass(eq=False, repr=False, slots=True)
class Facts:
    """One module of the model, at the first of its places.

    Attributes:
        name: full name, wrapper components left out; ``""`` is the model.
        module: the object.
        parent: the facts of the module that it hangs in, None for the model.
        frozen: whether it is claimed to be frozen as a whole.
        training: the mode that it is in.
        after_train: the mode that it would be in after ``model.train()``.
        after_eval: the mode that it would be in after ``model.eval()``.
        behaviour: what it does in each mode; None where the mode makes no difference to it, and
            it neither draws random numbers nor writes.
    """

    name: str
    module: nn.Module
    parent: Facts | None
    frozen: bool
    training: bool
    after_train: bool
    after_eval: bool
    behaviour: Behaviour | None

    def doing(self, training: bool) -> Doing | None:
        """What a forward of it does in one mode."""
        if self.behaviour is None:
            return None
        return self.behaviour.in_training if training else self.behaviour.in_eval

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.module).__name__


@dataclass(eq=False, repr=False)
class Subject:
    """A model with its optimizer and batch, and what is known of them. Rules only read it.

    Attributes:
        model: the root.
        claim: what is claimed to be frozen.
        modules: every module once, parents first.
        tensors: every parameter, buffer and plain tensor attribute at every place.
        now: what a step does with the modules in the modes that they are in.
        after_train: the same after ``model.train()``.
        optimizer: the one that will step, or None.
        batch: one batch, or None.
        compute_loss: ``compute_loss(model, batch)``, or None.
        probes: what runs of the frozen part showed; None without a real batch.
        explained: names of tensors that findings so far have named; the last rule looks at them.
    """

    model: nn.Module
    claim: Claim
    modules: list[Facts]
    tensors: list[NamedTensor]
    now: Step
    after_train: Step
    optimizer: Optimizer | None = None
    batch: Any = None
    compute_loss: Callable[[nn.Module, Any], Tensor] | None = None
    probes: Probes | None = None
    explained: set[str] = field(default_factory=set)
    by_module: dict[int, Facts] = field(init=False)

    def __post_init__(self) -> None:
        self.by_module = {id(facts.module): facts for facts in self.modules}

    @cached_property
    def parameters(self) -> list[NamedTensor]:
        """Each parameter at the first of its places, in the order of the model."""
        places: dict[int, NamedTensor] = {}
        for entry in self.tensors:
            if entry.kind == "parameter":
                places.setdefault(id(entry.tensor), entry)
        return list(places.values())

    def frozen_modules(self) -> Iterator[Facts]:
        """The modules that are claimed to be frozen as a whole."""
        return (facts for facts in self.modules if facts.frozen)

    def is_frozen(self, tensor: Tensor) -> bool:
        """Whether this very object is claimed to be frozen."""
        return id(tensor) in self.claim.tensors

    def written(self, facts: Facts, step: Step, *, maybe: bool = False) -> tuple[str, ...]:
        """Full names of frozen tensors of a module that its own forward writes and a step changes.

        Args:
            facts: the module.
            step: :attr:`now` or :attr:`after_train`.
            maybe: those that the step leaves undecided, in their place.
        """
        doing = facts.doing(facts.training if step is self.now else facts.after_train)
        told = step.undecided if maybe else step.changed
        return tuple(
            join(facts.name, write.tensor)
            for write in (doing.writes if doing is not None else ())
            if id(getattr(facts.module, write.tensor, None)) in told
            and id(getattr(facts.module, write.tensor)) in self.claim.tensors
        )

    def stepped(self) -> list[Tensor]:
        """The parameters that the optimizer steps, in its order; none without an optimizer."""
        groups = self.optimizer.param_groups if self.optimizer is not None else ()
        return [parameter for group in groups for parameter in group["params"]]

    def top(self, facts: Facts) -> Facts:
        """The outermost module around this one that is frozen as a whole, or the module itself."""
        found = facts
        while found.parent is not None and found.parent.frozen:
            found = found.parent
        return found

    def freezing(self, facts: Facts) -> str:
        """The line that freezes the part that this module is in, as the mend of a finding."""
        if id(facts.module) in self.claim.flagged:
            return "fl.freeze(model, fl.FLAGGED)"
        name = self.top(facts).name
        return f"fl.freeze(model, {name!r})" if name else "fl.freeze(model)"
