"""What a file offers as a target, by its text: nothing of it is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.cli.targets.spelling import typed

Function = ast.FunctionDef | ast.AsyncFunctionDef

_LIKELY = ("setup", "build|make|create|model", "net")
_STUB = """Add a function that builds the model as your training does:

  def setup():
      model = ...
      return {"model": model}

and type"""


@dataclass(frozen=True)
class Candidate:
    """A name at the top level of a file.

    Attributes:
        name: as it stands behind the colon.
        line: where it is defined, from 1.
        obstacle: why it cannot be used as it is, or None.
    """

    name: str
    line: int
    obstacle: str | None = None


def candidates(tree: ast.Module) -> list[Candidate]:
    """Functions, classes that look like modules, and attributes that look like one.

    Example:
        >>> candidates(ast.parse("def build(): ..."))
        [Candidate(name='build', line=1, obstacle=None)]
    """
    classes = _module_classes(tree)
    found: dict[str, Candidate] = {}
    for node in tree.body:
        if isinstance(node, Function):
            found[node.name] = Candidate(node.name, node.lineno, _obstacle(node))
        elif isinstance(node, ast.ClassDef) and node.name in classes:
            found[node.name] = Candidate(node.name, node.lineno, _needs(_required(node, classes)))
        else:
            found |= {n: Candidate(n, node.lineno) for n in _assigned_modules(node, classes)}
    return list(found.values())


def without_name(where: str, tree: ast.Module) -> str:
    """The message for a target without a name: what there is, and the line to type next."""
    found = candidates(tree)
    usable = [one.name for one in found if one.obstacle is None]
    width = max((len(one.name) for one in found), default=0)
    rows = "\n".join(_row(one, width) for one in found)
    if usable:
        said, then = "say which of these gives the model:", "Type, for instance"
    else:
        said, then = "nothing in it gives a model without arguments.", _STUB
    name = _likeliest(usable) if usable else "setup"
    paragraphs = [f"{where} was not run; {said}", rows, then, typed(f"{where}:{name}")]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def kept_from_import(tree: ast.Module) -> set[str]:
    """Names given under ``if __name__ == "__main__":``, which an import leaves out."""
    blocks = (n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.unparse(n.test))
    inner = (child for block in blocks for child in block.body)
    return {name for child in inner for name in _given(child)}


def _likeliest(names: list[str]) -> str:
    ranked = (n for like in _LIKELY for n in names if re.search(like, n, re.IGNORECASE))
    return next(ranked, names[0])


def _row(one: Candidate, width: int) -> str:
    obstacle = f"   not usable: {one.obstacle}" if one.obstacle else ""
    return f"  {one.name:{width}}   line {one.line}{obstacle}"


def _obstacle(node: Function) -> str | None:
    if isinstance(node, ast.AsyncFunctionDef):
        return "it is async"
    return _needs(_parameters(node))


def _needs(required: list[str]) -> str | None:
    return f"it requires {', '.join(required)}" if required else None


def _parameters(node: Function) -> list[str]:
    """Those without a default."""
    given = node.args.posonlyargs + node.args.args
    required = given[: len(given) - len(node.args.defaults)]
    named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [a.arg for a in required] + [a.arg for a, default in named if default is None]


def _required(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """What its constructor requires, its own or that of a base in the same file."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return _parameters(child)[1:]
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    here = [classes[name] for name in bases if name in classes and name != node.name]
    return _required(here[0], classes) if here else []


def _module_classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    found: dict[str, ast.ClassDef] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(_is_module(b, found) for b in node.bases):
            found[node.name] = node
    return found


def _is_module(class_: ast.expr, classes: dict[str, ast.ClassDef]) -> bool:
    """``nn.Module``, ``nn.Sequential``, ``LightningModule``, or one of this file."""
    name = ast.unparse(class_)
    module, _, last = name.rpartition(".")
    return name in classes or last.endswith("Module") or module in {"nn", "torch.nn"}


def _assigned_modules(node: ast.stmt, classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    value = getattr(node, "value", None)
    if isinstance(value, ast.Call):
        fits = _is_module(value.func, classes)
        yield from (name for name in _given(node) if fits or name in {"model", "net", "network"})
    elif isinstance(value, ast.Dict):
        keys = {key.value for key in value.keys if isinstance(key, ast.Constant)}
        yield from (name for name in _given(node) if "model" in keys)


def _given(node: ast.stmt) -> Iterator[str]:
    """Names that a statement gives."""
    if isinstance(node, Function | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name))
