"""The promise of the root: these names, documented, and results that refuse to be truth values."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from types import ModuleType

import pytest

import frostline
from frostline import types
from frostline._results import Result

ROOT_NAMES = [
    "Accumulator",
    "FLAGGED",
    "accumulate",
    "attribute",
    "audit",
    "coupling",
    "digest",
    "errors",
    "explain",
    "freeze",
    "guard",
    "manifest",
    "param_groups",
    "parts",
    "recalibrate",
    "split",
    "summary",
    "types",
    "unfreeze",
]
MOST_ROOT_NAMES = 25


def exported(module: ModuleType) -> list[str]:
    """What a table of contents promises: its `from x import name as name`."""
    tree = ast.parse(inspect.getsource(module))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return sorted(
        alias.asname for node in imports for alias in node.names if alias.asname is not None
    )


def subclasses(kind: type) -> list[type]:
    return [found for child in kind.__subclasses__() for found in (child, *subclasses(child))]


def test_root_names_are_the_golden_list() -> None:
    assert exported(frostline) == ROOT_NAMES
    assert len(ROOT_NAMES) <= MOST_ROOT_NAMES


@pytest.mark.parametrize(
    "name", [name for name in ROOT_NAMES if inspect.isroutine(getattr(frostline, name, None))]
)
def test_a_root_function_is_documented_with_an_example(name: str) -> None:
    function = getattr(frostline, name)
    documented = inspect.getdoc(function) or ""
    assert documented.partition("\n")[0].endswith("."), "a summary in one line"
    assert ">>>" in documented
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values())


def test_no_module_has_the_name_of_a_root_function() -> None:
    functions = {name for name in exported(frostline) if callable(getattr(frostline, name))}
    modules = {module.name for module in pkgutil.iter_modules(frostline.__path__)}
    assert functions & modules == set()


@pytest.mark.parametrize("name", exported(types))
def test_every_public_method_is_documented(name: str) -> None:
    kind = getattr(types, name)
    members = vars(kind).items() if inspect.isclass(kind) else ()
    methods = {
        key
        for key, member in members
        if not key.startswith("_") and (callable(member) or isinstance(member, property))
    }
    assert inspect.getdoc(kind)
    assert {key for key in methods if not inspect.getdoc(getattr(kind, key))} == set()


@pytest.mark.parametrize("kind", subclasses(Result), ids=lambda kind: kind.__name__)
def test_a_result_is_no_truth_value(kind: type) -> None:
    with pytest.raises(TypeError, match="is not a truth value; "):
        bool(kind.__new__(kind))


def test_every_result_serialises_and_prints() -> None:
    kinds = subclasses(Result)
    assert kinds
    for kind in kinds:
        assert kind.to_dict is not Result.to_dict, kind
        assert kind.__str__ is not object.__str__, kind
