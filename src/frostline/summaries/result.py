"""What ``summary`` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from frostline._results import Result

State = Literal["trainable", "frozen", "mixed", "none"]
Only = Literal["trainable", "frozen", "mixed", "held", "leaky"]
Sort = Literal["name", "parameters", "memory"]


@dataclass(frozen=True)
class Row:
    """A module, with all that is at or below it, each byte once.

    Attributes:
        name: full name; empty for the model itself.
        type: name of its class.
        depth: how many names deep it is.
        parameters: elements of its parameters.
        trainable: those of them with ``requires_grad=True``.
        frozen: the others.
        buffers: elements of its buffers.
        bytes: memory of parameters and buffers.
        state: trainable, frozen, or mixed; one without parameters is frozen where
            :data:`frostline.FLAGGED` selects it, and none elsewhere.
        held: whether a frozen part holds all of it.
        leaks: how many tensors at or below it the next training step writes though it is frozen.
        reasons: why, in words.
    """

    name: str
    type: str
    depth: int
    parameters: int
    trainable: int
    frozen: int
    buffers: int
    bytes: int
    state: State
    held: bool
    leaks: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def leaky(self) -> bool:
        """Whether the next training step writes something of it though it is frozen."""
        return self.leaks > 0

    @property
    def standing(self) -> str:
        """The most that can be said of its state in one word."""
        if self.leaky and self.state == "frozen":
            return "leaky"
        return "held" if self.held else self.state


@dataclass(frozen=True, repr=False)
class Summary(Result):
    """What is trainable in a model, what a training step will cost in memory, and what leaks.

    Elements and bytes are counted by memory: shared ones once.

    Attributes:
        model: name of the model's class.
        modules: how many modules it has.
        parameters: elements of its parameters.
        trainable: those of them with ``requires_grad=True``.
        frozen: the others.
        buffers: elements of its buffers.
        parameter_bytes: memory of the parameters.
        trainable_bytes: memory of the trainable ones.
        frozen_bytes: memory of the others.
        buffer_bytes: memory of the buffers.
        gradient_bytes: what the gradients of the trainable parameters will take.
        optimizer: name of the optimizer's class, None if none was given.
        optimizer_bytes: what it keeps after its next step; None without an optimizer, or if that
            cannot be said, and then a note says why.
        optimizer_how: ``"measured"``, ``"predicted"``, ``"measured and predicted"``, ``"unknown"``.
        optimizer_estimates: without an optimizer, what usual ones would keep.
        activation_bytes: what one forward keeps alive for backward; None without a batch.
        activation_how: ``"predicted"`` without running it, or ``"measured"`` by a run.
        activation_of: how the model was called, and what of its output is kept.
        leaky: full names of the tensors that the next training step changes though they look
            frozen.
        rows: every module, parents first.
        lazy: full names of parameters and buffers that have no shape yet and are not counted.
        notes: what else is to be known.
    """

    model: str
    modules: int
    parameters: int
    trainable: int
    frozen: int
    buffers: int
    parameter_bytes: int
    trainable_bytes: int
    frozen_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer: str | None
    optimizer_bytes: int | None
    optimizer_how: str
    optimizer_estimates: dict[str, int | None]
    activation_bytes: int | None
    activation_how: str | None
    activation_of: str
    leaky: list[str]
    rows: tuple[Row, ...]
    lazy: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Memory of parameters and buffers."""
        return self.parameter_bytes + self.buffer_bytes

    def table(
        self, depth: int | None = 2, only: Only | None = None, sort: Sort | None = None
    ) -> str:
        """The tree of modules as text, 80 columns wide, equal numbered siblings in one line.

        Args:
            depth: how many names deep; deeper all the same below what is mixed, and to what is
                leaky. None is all. Modules without any tensor are left out.
            only: rows of one kind.
            sort: by name, or the largest first; None is the model's own order.

        Raises:
            ValueError: for an unknown switch or a depth below 0.

        Example:
            >>> import torch, frostline as fl
            >>> from frostline.summaries import summary
            >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
            >>> print(summary(net).table(sort="memory"))
              module  class       parameters  memory  state
              (root)  Sequential          46   184 B  trainable
              0       Linear              36   144 B  trainable
              1       Linear              10    40 B  trainable
        """
        from frostline.summaries import telling

        return telling.table(self, depth, only, sort)

    def text(
        self, depth: int | None = 2, only: Only | None = None, sort: Sort | None = None
    ) -> str:
        """As ``print`` shows it, with all lines of that :meth:`table`; ``print`` shows 30."""
        from frostline.summaries import telling

        return telling.text(self, depth, only, sort, None)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON; docs/formats/summary-v1.schema.json describes them."""
        optimizer = {
            "name": self.optimizer,
            "bytes": self.optimizer_bytes,
            "how": self.optimizer_how,
            "estimates": dict(self.optimizer_estimates),
        }
        activations = {
            "bytes": self.activation_bytes,
            "how": self.activation_how,
            "of": self.activation_of,
        }
        return {
            "version": 1,
            "model": self.model,
            "modules": self.modules,
            "parameters": {"elements": self.parameters, "bytes": self.parameter_bytes},
            "trainable": {"elements": self.trainable, "bytes": self.trainable_bytes},
            "frozen": {"elements": self.frozen, "bytes": self.frozen_bytes},
            "buffers": {"elements": self.buffers, "bytes": self.buffer_bytes},
            "bytes": self.bytes,
            "gradient_bytes": self.gradient_bytes,
            "optimizer": optimizer,
            "activations": activations,
            "leaky": list(self.leaky),
            "lazy": list(self.lazy),
            "notes": list(self.notes),
            "rows": [{**asdict(row), "reasons": list(row.reasons)} for row in self.rows],
        }

    def __str__(self) -> str:
        from frostline.summaries import telling

        return telling.text(self, 2, None, None, telling.MOST_LINES)

    def _repr_html_(self) -> str:
        from frostline.summaries import html_page

        return html_page.page(self)
