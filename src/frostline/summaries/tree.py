"""The modules of a model as a tree, each with all that is at or below it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline._names import Places, once
from frostline.freezing.machinery import base_of, is_held_class
from frostline.freezing.record import get
from frostline.summaries.footprint import Footprint, Size, Window


@dataclass(eq=False, repr=False)
class Node:
    """A module at the first of its places.

    Attributes:
        name: full name, wrapper components left out.
        module: the object.
        parent: the node above, None for the root.
        trainable: windows on memory of trainable parameters at or below it.
        frozen: the same of parameters with ``requires_grad=False``.
        buffers: the same of buffers.
        flags: whether each parameter at or below it is trainable; empty without parameters.
        covered: whether frozen parts cover every parameter at or below it.
        records: whether a part covers anything at or below it.
    """

    name: str
    module: nn.Module
    parent: Node | None
    trainable: set[Window] = field(default_factory=set)
    frozen: set[Window] = field(default_factory=set)
    buffers: set[Window] = field(default_factory=set)
    flags: set[bool] = field(default_factory=set)
    covered: bool = True
    records: bool = False

    @property
    def depth(self) -> int:
        return self.name.count(".") + 1 if self.name else 0

    @property
    def type(self) -> str:
        """The name of its class."""
        return class_name(self.module)

    def above(self) -> Iterator[Node]:
        """The node itself, then its ancestors."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass(frozen=True)
class Sizes:
    """What is at or below a node: each byte once, with the first of these that claims it."""

    trainable: Size
    frozen: Size
    buffers: Size

    @property
    def parameters(self) -> Size:
        """Trainable and frozen."""
        return Size(*map(sum, zip(self.trainable, self.frozen, strict=True)))


def class_name(module: nn.Module) -> str:
    """The name of the user's class, not that of the hold."""
    cls = type(module)
    return base_of(cls).__name__ if is_held_class(cls) else cls.__name__


def grow(model: nn.Module, everything: Places, footprint: Footprint) -> list[Node]:
    """The nodes of ``model``, parents first."""
    names = {id(module): name for name, module in once(everything.modules)}
    nodes: list[Node] = []
    _add(model, None, names, nodes, set())
    for node in nodes:
        _look(node, footprint)
    # Children come after their parents, so backwards each is complete when it is added.
    for node in reversed(nodes):
        if node.parent is not None:
            _join(node, node.parent)
    return nodes


def _add(
    module: nn.Module,
    parent: Node | None,
    names: dict[int, str],
    nodes: list[Node],
    seen: set[int],
) -> None:
    seen.add(id(module))
    node = Node(names[id(module)], module, parent)
    nodes.append(node)
    for child in module._modules.values():
        if child is not None and id(child) not in seen:
            _add(child, node, names, nodes, seen)


def _look(node: Node, footprint: Footprint) -> None:
    module, record = node.module, get(node.module)
    slots = {slot.name for slot in record.slots if slot.parts} if record is not None else set()
    node.records = record is not None
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        node.flags.add(parameter.requires_grad)
        node.covered = node.covered and name in slots
        windows = node.trainable if parameter.requires_grad else node.frozen
        windows.update(footprint.of.get(id(parameter), ()))
    for buffer in module._buffers.values():
        node.buffers.update(footprint.of.get(id(buffer), ()))


def _join(node: Node, parent: Node) -> None:
    parent.trainable |= node.trainable
    parent.frozen |= node.frozen
    parent.buffers |= node.buffers
    parent.flags |= node.flags
    parent.covered = parent.covered and node.covered
    parent.records = parent.records or node.records


def sizes(node: Node, footprint: Footprint) -> Sizes:
    """What is at or below ``node``."""
    trainable = footprint.size(node.trainable)
    parameters = footprint.size(node.trainable | node.frozen)
    everything = footprint.size(node.trainable | node.frozen | node.buffers)
    return Sizes(trainable, parameters.less(trainable), everything.less(parameters))


def measurable(everything: Places) -> Iterator[Tensor]:
    """Parameters and buffers that have a shape."""
    for entry in everything.tensors:
        if entry.kind != "attribute" and not is_lazy(entry.tensor):
            yield entry.tensor
