"""Choosing a part of a model: the selector language, in one place.

A selector is a name or pattern, a compiled regular expression, a module, a module type, a
predicate ``(name, module) -> bool``, :data:`FLAGGED`, a manifest, a sequence of these, or None for
the whole model. A selected module brings everything below it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from frostline._names import NamedTensor, Places, once, places
from frostline.errors import SelectionError


class _Flagged:
    """The type of :data:`FLAGGED`."""

    def __repr__(self) -> str:
        return "fl.FLAGGED"

    def __reduce__(self) -> str:
        return "FLAGGED"


FLAGGED = _Flagged()
"""A selector: what ``requires_grad=False`` means to freeze.

Every parameter with ``requires_grad=False`` now, and the modules that belong to them: a module is
in when it has parameters at or below it and none is trainable; a module without parameters
(dropout, a norm with ``affine=False``) follows its nearest ancestor that has some; under an
ancestor with both kinds it is out.
"""


@runtime_checkable
class NamesItsMembers(Protocol):
    """What a manifest offers to selection: exact names, nothing below them."""

    @property
    def member_modules(self) -> Sequence[str]: ...

    @property
    def member_tensors(self) -> Sequence[str]: ...


Predicate: TypeAlias = Callable[[str, nn.Module], bool]
Selector: TypeAlias = (
    "str | re.Pattern[str] | nn.Module | type[nn.Module] | Predicate | _Flagged "
    "| NamesItsMembers | Sequence[Selector] | None"
)


@dataclass(eq=False, repr=False)
class Selection:
    """What a selector means on one model.

    Attributes:
        modules: the selected modules with their full names, parents first.
        tensors: the selected tensors at each of their places.
        everything: all that hangs in the model.
    """

    modules: list[tuple[str, nn.Module]]
    tensors: list[NamedTensor]
    everything: Places


def select(
    model: nn.Module,
    selector: Selector = None,
    exclude: Selector = None,
    everything: Places | None = None,
) -> Selection:
    """The modules and tensors of ``model`` that ``selector`` names and ``exclude`` does not.

    Args:
        model: the root.
        selector: what is wanted.
        exclude: what is left out of it.
        everything: all that hangs in ``model``, where somebody walked it already.

    Raises:
        SelectionError: if ``selector`` or ``exclude`` matches nothing, or nothing is left.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> [t.name for t in select(net, "1").tensors][:2]
        ['1.weight', '1.bias']
    """
    view = _View(model, everything)
    modules, tensors = view.find(selector)
    if exclude is not None:
        out_modules, out_tensors = view.find(exclude)
        modules -= out_modules
        tensors -= out_tensors
    if not modules and not tensors:
        raise SelectionError(
            f"nothing in {type(model).__name__} is left of {describe(selector)} after "
            f"exclude={describe(exclude)}. Exclude less, or select more."
        )
    return Selection(
        [(name, module) for name, module in view.modules if id(module) in modules],
        [entry for i, entry in enumerate(view.tensors) if i in tensors],
        view.everything,
    )


def select_names(names: Iterable[str], selector: Selector = None) -> list[str]:
    """The names that ``selector`` matches, where there are only names: a file, a state dict.

    Raises:
        SelectionError: if nothing matches, or the selector needs live modules.

    Example:
        >>> select_names(["layer1.weight", "layer10.weight"], "layer1")
        ['layer1.weight']
    """
    known = list(names)
    if selector is None:
        return known
    if isinstance(selector, NamesItsMembers):
        selector = list(selector.member_tensors)
    wanted = [selector] if isinstance(selector, str | re.Pattern) else selector
    if not isinstance(wanted, Sequence) or not all(
        isinstance(item, str | re.Pattern) for item in wanted
    ):
        raise SelectionError(
            f"{describe(selector)} needs a live model; on names alone select by a name, a pattern "
            "or a compiled regular expression, for example 'backbone'"
        )
    chosen: set[str] = set()
    for item in wanted:
        hits = {name for name in known if any(_name_test(item)(p) for p in _prefixes(name))}
        if not hits:
            raise SelectionError(_nothing(repr(item), item, known))
        chosen |= hits
    return [name for name in known if name in chosen]


def describe(selector: Selector) -> str:
    """The selector as the user would write it, short enough for one line."""
    if selector is None:
        return "the whole model"
    if isinstance(selector, str):
        return f'"{selector}"'
    if isinstance(selector, re.Pattern):
        return f"re.compile({selector.pattern!r})"
    if isinstance(selector, nn.Module):
        return f"the module {type(selector).__name__}"
    if isinstance(selector, _Flagged):
        return repr(selector)
    if isinstance(selector, Sequence):
        return "[" + ", ".join(describe(item) for item in selector) + "]"
    return str(getattr(selector, "__name__", type(selector).__name__))


class _View:
    """One model's modules and tensors, listed once, with the trees below them."""

    def __init__(self, model: nn.Module, everything: Places | None) -> None:
        self.model = model
        self.everything = places(model) if everything is None else everything
        self.paths, self.tensors = self.everything.modules, self.everything.tensors
        self.modules = once(self.paths)

    def find(self, selector: Selector) -> tuple[set[int], set[int]]:
        """Ids of the selected modules, indices of the selected tensors."""
        if selector is None:
            return {id(m) for _, m in self.modules}, set(range(len(self.tensors)))
        if isinstance(selector, str | re.Pattern):
            return self._by_name(selector)
        if isinstance(selector, nn.Module):
            return self._by_module(selector)
        if isinstance(selector, _Flagged):
            return self._flagged()
        if isinstance(selector, NamesItsMembers):
            return self._members(selector)
        if isinstance(selector, Sequence):
            return self._union(selector)
        if callable(selector):
            return self._by_predicate(selector)
        raise SelectionError(
            f"cannot select by {type(selector).__name__}: expected a name or pattern, a compiled "
            "regular expression, a module, a module type, a function (name, module) -> bool, "
            "fl.FLAGGED, a manifest, or a list of these"
        )

    def _union(self, selectors: Sequence[Selector]) -> tuple[set[int], set[int]]:
        if not selectors:
            raise SelectionError("the selector is an empty list; name at least one part")
        modules: set[int] = set()
        tensors: set[int] = set()
        for selector in selectors:
            more_modules, more_tensors = self.find(selector)
            modules |= more_modules
            tensors |= more_tensors
        return modules, tensors

    def _by_name(self, selector: str | re.Pattern[str]) -> tuple[set[int], set[int]]:
        test = _name_test(selector)
        modules, tensors = self._below(module for name, module in self.paths if test(name))
        tensors |= {i for i, entry in enumerate(self.tensors) if test(entry.name)}
        if not modules and not tensors:
            names = [name for name, _ in self.paths if name] + [e.name for e in self.tensors]
            raise SelectionError(
                f"in {type(self.model).__name__}, " + _nothing(describe(selector), selector, names)
            )
        return modules, tensors

    def _by_module(self, wanted: nn.Module) -> tuple[set[int], set[int]]:
        if all(module is not wanted for _, module in self.modules):
            raise SelectionError(
                f"the {type(wanted).__name__} given as selector is not a submodule of this "
                f"{type(self.model).__name__}. Was it replaced or copied since? Select by name."
            )
        return self._below([wanted])

    def _by_predicate(self, test: type[nn.Module] | Predicate) -> tuple[set[int], set[int]]:
        if isinstance(test, type):
            if not issubclass(test, nn.Module):
                raise SelectionError(f"{test.__name__} is no module type, so it selects nothing")
            hits = [module for _, module in self.modules if isinstance(module, test)]
        else:
            hits = [module for name, module in self.modules if test(name, module)]
        if not hits:
            raise SelectionError(
                f"{describe(test)} selects no module of this {type(self.model).__name__}"
            )
        return self._below(hits)

    def _members(self, members: NamesItsMembers) -> tuple[set[int], set[int]]:
        wanted_modules, wanted_tensors = (
            set(members.member_modules),
            set(members.member_tensors),
        )
        known = {name for name, _ in self.paths} | {entry.name for entry in self.tensors}
        missing = sorted((wanted_modules | wanted_tensors) - known)
        if missing:
            raise SelectionError(
                f"{len(missing)} names of the manifest are not in this "
                f"{type(self.model).__name__}, the first: {missing[0]!r}. Is it another model?"
            )
        tensors = {i for i, e in enumerate(self.tensors) if e.name in wanted_tensors}
        if wanted_modules:
            return {id(m) for name, m in self.paths if name in wanted_modules}, tensors
        # Tensors alone: the modules that they make up, with what has no tensors below those.
        inside = {id(self.tensors[i].tensor) for i in tensors}
        return self._made_up_of(lambda tensor: id(tensor) in inside, buffers=True), tensors

    def _flagged(self) -> tuple[set[int], set[int]]:
        modules = self._made_up_of(lambda tensor: not tensor.requires_grad, buffers=False)
        tensors = {
            i
            for i, e in enumerate(self.tensors)
            if (e.kind == "parameter" and not e.tensor.requires_grad)
            or (e.kind != "parameter" and id(e.owner) in modules)
        }
        if not any(self.tensors[i].kind == "parameter" for i in tensors):
            raise SelectionError(
                f"no parameter of this {type(self.model).__name__} has requires_grad=False, so "
                "fl.FLAGGED selects nothing. Name the part: fl.freeze(model, 'backbone')"
            )
        return modules, tensors

    def _made_up_of(self, test: Callable[[Tensor], bool], buffers: bool) -> set[int]:
        """Modules whose tensors at and below all pass; one without any follows its parent."""
        passes: dict[int, bool | None] = {}
        found: set[int] = set()

        def ask(module: nn.Module) -> bool | None:
            """Whether all tensors at and below pass; None where there are none."""
            if id(module) not in passes:
                own = [*module._parameters.values(), *(module._buffers.values() if buffers else ())]
                answers = [test(tensor) for tensor in own if tensor is not None]
                answers += [a for child in module.children() if (a := ask(child)) is not None]
                passes[id(module)] = all(answers) if answers else None
            return passes[id(module)]

        def walk(module: nn.Module, parent_in: bool) -> None:
            answer = ask(module)
            inside = parent_in if answer is None else answer
            if inside:
                found.add(id(module))
            for child in module.children():
                walk(child, inside)

        walk(self.model, False)
        return found

    def _below(self, tops: Iterable[nn.Module]) -> tuple[set[int], set[int]]:
        modules = {id(module) for top in tops for module in top.modules()}
        tensors = {i for i, entry in enumerate(self.tensors) if id(entry.owner) in modules}
        return modules, tensors


def _name_test(selector: Any) -> Callable[[str], bool]:
    if isinstance(selector, re.Pattern):
        return lambda name: bool(name) and selector.fullmatch(name) is not None
    components = selector.split(".")
    return lambda name: _match(components, name.split(".") if name else [])


def _match(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """Component by component; ``*`` stays within one component, ``**`` spans any number."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_match(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _match(pattern[1:], name[1:])


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for i in range(len(parts)):
        yield ".".join(parts[: i + 1])


def _nothing(text: str, selector: Any, names: Sequence[str]) -> str:
    wanted = selector.pattern if isinstance(selector, re.Pattern) else str(selector)
    close = get_close_matches(wanted, names, n=3, cutoff=0.5)
    # A wildcard or a forgotten parent: the last component alone often finds it.
    last = wanted.rsplit(".", 1)[-1]
    close += [n for n in names if n.rsplit(".", 1)[-1] == last and n not in close][:3]
    if not close:
        close = list(dict.fromkeys(name.split(".")[0] for name in names))[:8]
    shown = ", ".join(repr(name) for name in close[:5]) or "none, the model has no tensors"
    return f"{text} matches nothing. The nearest names are: {shown}"
