"""Which layer of a model a parameter stands in, counted from the input."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from frostline._names import Places
from frostline.errors import SelectionError


def layers(everything: Places) -> dict[int, int]:
    """The layer of each parameter, by its id; 0 is the lowest, the greatest number the top.

    A model with timm's ``group_matcher`` says it itself. In others the layers are the numbered
    blocks, in the order of the model; what comes before the first block is a layer of its own (the
    stem), what comes after the last one too (the top); what stands between two blocks belongs to
    the block before it. A tied tensor has the layer of its first place.

    Raises:
        SelectionError: if there are no numbered blocks, or all is one layer.
    """
    # The last module without a name is the user's own; those before it are wrappers around it.
    model = [module for name, module in everything.modules if not name][-1]
    found = _by_timm(model) if hasattr(model, "group_matcher") else _by_blocks(model)
    top = max(found.values(), default=0)
    if top == 0:
        raise SelectionError(
            f"layer_decay finds no layers in {type(model).__name__}: expected numbered blocks (the "
            "members of an nn.ModuleList or nn.Sequential) or timm's group_matcher. Name the "
            'parts: groups={"backbone": 1e-5, "head": 1e-3}'
        )
    # What timm's rule leaves out, or hangs in a wrapper beside the model, counts to the top.
    tensors = (entry.tensor for entry in everything.tensors if entry.kind == "parameter")
    return {id(tensor): found.get(id(tensor), top) for tensor in tensors}


def _by_timm(model: nn.Module) -> dict[int, int]:
    from timm.models import group_parameters

    matcher = model.group_matcher(coarse=False)  # type: ignore[operator]
    numbers = group_parameters(model, matcher, reverse=True)
    return {id(p): numbers[name] for name, p in model.named_parameters() if name in numbers}


def _by_blocks(model: nn.Module) -> dict[int, int]:
    walk = list(_walk(model, None))
    last = max((i for i, (_, block) in enumerate(walk) if block is not None), default=len(walk))
    found: dict[int, int] = {}
    order: dict[nn.Module | str, int] = {}
    here: nn.Module | str = "stem"
    for i, (parameter, block) in enumerate(walk):
        here = "top" if i > last else here if block is None else block
        if id(parameter) not in found:
            found[id(parameter)] = order.setdefault(here, len(order))
    return found


def _walk(
    module: nn.Module, block: nn.Module | None
) -> Iterator[tuple[nn.Parameter, nn.Module | None]]:
    """Every parameter in the order of the model, with the block that it stands in."""
    for parameter in module._parameters.values():
        if parameter is not None:
            yield parameter, block
    blocks = _blocks(module)
    for child in module.children():
        yield from _walk(child, child if block is None and id(child) in blocks else block)


def _blocks(module: nn.Module) -> set[int]:
    """Ids of the numbered members of ``module`` that are blocks."""
    members = _members(module)
    # By name: a held module has a class of its own that is called like the others'.
    kinds = {(type(member).__module__, type(member).__qualname__) for member in members}
    # nn.Sequential(backbone, head) is no list of blocks: these are inside of the backbone.
    if len(members) > 1 and len(kinds) == len(members):
        members = [m for m in members if not any(_members(inner) for inner in m.modules())]
    return {id(member) for member in members}


def _members(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, ParametrizationList):
        return []
    return [child for name, child in module.named_children() if name.isdigit()]
