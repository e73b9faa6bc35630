"""The rows of a summary: a module each, its sizes, its state, what leaks in it and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from frostline.summaries import leaking, tree
from frostline.summaries.footprint import Footprint
from frostline.summaries.leaking import Leak
from frostline.summaries.result import Row, State
from frostline.summaries.tree import Node


def rows(
    nodes: list[Node], footprint: Footprint, frozen: set[int], leaks: Iterable[Leak]
) -> Iterator[Row]:
    """A row for each node.

    Args:
        nodes: the tree, parents first.
        footprint: the memory of its parameters and buffers.
        frozen: ids of the modules that look frozen.
        leaks: what changes all the same.
    """
    below = _leaks_below(nodes, frozen, leaks)
    for node in nodes:
        sizes, state = tree.sizes(node, footprint), _state(node, frozen)
        found = below.get(id(node.module), [])
        yield Row(
            name=node.name,
            type=node.type,
            depth=node.depth,
            parameters=sizes.parameters.elements,
            trainable=sizes.trainable.elements,
            frozen=sizes.frozen.elements,
            buffers=sizes.buffers.elements,
            bytes=sizes.parameters.bytes + sizes.buffers.bytes,
            state=state,
            held=state == "frozen" and node.covered and node.records and not found,
            leaks=len({name for leak in found for name in leak.names}),
            reasons=leaking.reasons(found),
        )


def _state(node: Node, frozen: set[int]) -> State:
    if len(node.flags) == 2:
        return "mixed"
    if not node.flags:
        return "frozen" if id(node.module) in frozen else "none"
    return "trainable" if True in node.flags else "frozen"


def _leaks_below(
    nodes: Iterable[Node], frozen: set[int], leaks: Iterable[Leak]
) -> dict[int, list[Leak]]:
    """For each leaky module, and for what looks frozen around it, the leaks at or below."""
    node_of = {id(node.module): node for node in nodes}
    found: dict[int, list[Leak]] = {}
    for leak in leaks:
        for node in node_of[id(leak.module)].above():
            if node.module is not leak.module and id(node.module) not in frozen:
                break
            found.setdefault(id(node.module), []).append(leak)
    return found
