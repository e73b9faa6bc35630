"""Full names of tensors and modules, seen through wrappers; who shares memory with whom.

Names are for people and for files; identity is decided by ``is``, overlap by byte ranges.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

TensorKind = Literal["parameter", "buffer", "attribute"]

# Components that wrappers put in front of or between the user's own names.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PEFT_ROOT = ("base_model", "model")
_ORIGINAL = re.compile(r"original\d*")
# Nearly no name holds any of these, and one look is much cheaper than taking it apart.
_SUSPECT = re.compile(r"module|_orig_mod|_wrapped|base_model|base_layer|parametrizations").search


def canonical(name: str) -> str:
    """``name`` without the components that wrappers add.

    Left out: a leading ``module`` (DDP, DataParallel), ``_orig_mod`` (torch.compile),
    ``_fsdp_wrapped_module``, a leading ``base_model.model`` and any inner ``base_layer`` (PEFT),
    and ``parametrizations.X.original`` becomes ``X``.

    Example:
        >>> canonical("module._orig_mod.layer1.conv.weight")
        'layer1.conv.weight'
        >>> canonical("fc.parametrizations.weight.original")
        'fc.weight'
    """
    if not _SUSPECT(name):
        return name
    parts = _strip_front([part for part in name.split(".") if part not in _WRAPPERS])
    return ".".join(_strip_inside(parts))


def _strip_front(parts: list[str]) -> list[str]:
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    if tuple(parts[:2]) == _PEFT_ROOT:
        parts = parts[2:]
    return parts


def _strip_inside(parts: list[str]) -> Iterator[str]:
    i = 0
    while i < len(parts):
        here = parts[i]
        if here == "parametrizations" and i + 2 < len(parts) and _ORIGINAL.fullmatch(parts[i + 2]):
            # weight_norm splits one tensor into original0 and original1: these stay apart.
            suffix = parts[i + 2][len("original") :]
            yield parts[i + 1] + (f":{suffix}" if suffix else "")
            i += 3
            continue
        if here != "base_layer" or i == 0:
            yield here
        i += 1


@dataclass(eq=False, slots=True)
class NamedTensor:
    """A tensor of a model at one of its places.

    Attributes:
        name: full name, wrapper components left out.
        tensor: the object itself.
        kind: parameter, buffer, or a plain tensor attribute of a module.
        persistent: whether it is in the state dict.
        owner: the module that holds it.
        attribute: its name within ``owner``.
    """

    name: str
    tensor: Tensor
    kind: TensorKind
    persistent: bool
    owner: nn.Module
    attribute: str


@dataclass(eq=False, slots=True)
class Places:
    """All that hangs in a model, walked once.

    Attributes:
        modules: canonical name and module for every place; a shared module stands at several.
        tensors: every tensor at every place.
    """

    modules: list[tuple[str, nn.Module]]
    tensors: list[NamedTensor]


def join(prefix: str, name: str) -> str:
    """``prefix.name``, without a dot where one of them is empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def places(model: nn.Module) -> Places:
    """Walk ``model``, parents first, in the order of ``named_modules(remove_duplicate=False)``."""
    found = Places([], [])
    _walk(model, "", False, found)
    return found


# A path without any of these is canonical as it stands.
_SPECIAL = frozenset({*_WRAPPERS, "module", _PEFT_ROOT[0], "base_layer", "parametrizations"})


def _walk(module: nn.Module, path: str, special: bool, found: Places) -> None:
    found.modules.append((_canonical_module(path) if special else path, module))
    for kind, attribute, tensor, persistent in _own_tensors(module):
        name = f"{path}.{attribute}" if path else attribute
        entry = canonical(name) if special else name
        found.tensors.append(NamedTensor(entry, tensor, kind, persistent, module, attribute))
    for key, child in module._modules.items():
        if child is not None:
            _walk(child, join(path, key), special or key in _SPECIAL, found)


def _canonical_module(name: str) -> str:
    # Module paths may end in a wrapper component, which `canonical` treats as a tensor's name.
    return canonical(f"{name}.x")[:-2] if name else ""


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module with its canonical name, the root as ``""``; a shared one under its first name.

    A wrapper (DDP, a compiled module) has the same canonical name as what it wraps; both are
    listed, the outer one first.
    """
    return once(places(model).modules)


def once(modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Each module under the first of its names."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in modules:
        found.setdefault(id(module), (name, module))
    return list(found.values())


def named_tensors(model: nn.Module) -> list[NamedTensor]:
    """Every parameter, buffer and plain tensor attribute at every place where it hangs.

    A tied tensor is listed once for each place (the same object under several names); a module
    that hangs at several places likewise. Order: as in the state dict, plain attributes last in
    their module.

    Example:
        >>> [t.name for t in named_tensors(nn.Sequential(nn.Linear(2, 2, bias=False)))]
        ['0.weight']
    """
    return places(model).tensors


def _own_tensors(module: nn.Module) -> list[tuple[TensorKind, str, Tensor, bool]]:
    volatile = module._non_persistent_buffers_set
    return [
        *[("parameter", name, p, True) for name, p in module._parameters.items() if p is not None],
        *[
            ("buffer", name, b, name not in volatile)
            for name, b in module._buffers.items()
            if b is not None
        ],
        *[
            ("attribute", name, value, False)
            for name, value in vars(module).items()
            if type(value) not in _NO_TENSOR
            and isinstance(value, Tensor)
            and not _is_recomputed(module, name)
        ],
    ]


# What nearly all attributes of nearly all modules are: asked by type first, which is far cheaper.
_NO_TENSOR = frozenset({dict, bool, int, float, str, set, tuple, list, type(None), OrderedDict})


def _is_recomputed(module: nn.Module, name: str) -> bool:
    """Whether a hook makes this attribute anew from parameters before each forward.

    The old weight_norm and spectral_norm and pruning do: between two forwards theirs is stale.
    """
    own = module._parameters
    return f"{name}_orig" in own or (f"{name}_g" in own and f"{name}_v" in own)


def aliases(tensors: Iterable[NamedTensor]) -> list[list[NamedTensor]]:
    """Groups of places that hold the very same object, only where there are two or more.

    Example:
        >>> net = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
        >>> net["head"].weight = net["embed"].weight
        >>> [[t.name for t in group] for group in aliases(named_tensors(net))]
        [['embed.weight', 'head.weight']]
    """
    groups: dict[int, list[NamedTensor]] = {}
    for entry in tensors:
        groups.setdefault(id(entry.tensor), []).append(entry)
    return [group for group in groups.values() if len(group) > 1]


def partly_chosen(
    tensors: Iterable[NamedTensor], chosen: Iterable[NamedTensor]
) -> list[tuple[list[str], list[str], Tensor]]:
    """Tied tensors of which some places are chosen and others are not: both lists of names.

    Example:
        >>> net = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
        >>> net["head"].weight = net["embed"].weight
        >>> everywhere = named_tensors(net)
        >>> [half[:2] for half in partly_chosen(everywhere, everywhere[:1])]
        [(['embed.weight'], ['head.weight'])]
    """
    places = {(id(entry.owner), entry.attribute) for entry in chosen}
    found = []
    for group in aliases(tensors):
        inside = [e.name for e in group if (id(e.owner), e.attribute) in places]
        outside = [e.name for e in group if (id(e.owner), e.attribute) not in places]
        if inside and outside:
            found.append((inside, outside, group[0].tensor))
    return found


def byte_range(tensor: Tensor) -> tuple[str, int, int] | None:
    """Device and half-open address range that ``tensor`` spans; None without memory of its own.

    Strided tensors span from their first to their last element, gaps included.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or tensor.numel() == 0:
        return None
    if tensor.layout is not torch.strided:
        return None
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return str(tensor.device), start, start + tensor.nbytes
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.device), start, start + (reach + 1) * tensor.element_size()


def overlapping(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Pairs of names whose tensors are different objects and share bytes.

    Sorted by address first, so that the cost is n log n and not n squared.

    Example:
        >>> flat = torch.zeros(8)
        >>> overlapping({"a": flat[:5]}, {"b": flat[4:], "c": flat[5:]})
        [('a', 'b')]
    """
    if not left or not right:
        return []
    spans = sorted(
        (
            _Span(*span, side, name, tensor)
            for side, table in enumerate((left, right))
            for name, tensor in table.items()
            if (span := byte_range(tensor)) is not None
        ),
        key=lambda span: (span.device, span.start, span.end),
    )
    pairs: list[tuple[str, str]] = []
    reaching: list[_Span] = []
    for here in spans:
        reaching = [s for s in reaching if s.device == here.device and s.end > here.start]
        for other in reaching:
            if other.side != here.side and other.tensor is not here.tensor:
                first, second = (other, here) if other.side == 0 else (here, other)
                pairs.append((first.name, second.name))
        reaching.append(here)
    return pairs


@dataclass(eq=False, slots=True)
class _Span:
    """The bytes of a tensor, and on which side of a comparison it stands."""

    device: str
    start: int
    end: int
    side: int
    name: str
    tensor: Tensor
