"""Evaluate the formulas that are shown to people, so that what is tested is what they read."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor


def evaluate(formula: str, names: Mapping[str, Tensor]) -> Tensor:
    """The value of a right-hand side.

    Words after a comma explain; a comma before `k = ...` gives k. Two factors stand side by side.
    """
    body, *rest = formula.removeprefix("y = ").split(", ")
    known: dict[str, object] = {"sqrt": torch.sqrt}
    for clause in rest:
        if clause.startswith("k = "):
            known["k"] = _value(clause.removeprefix("k = "), names, known)
    return _value(body, names, known)


def _value(text: str, names: Mapping[str, Tensor], known: dict[str, object]) -> Tensor:
    for i, name in enumerate(sorted(names, key=len, reverse=True)):
        known[f"n{i}_"] = names[name]
        text = re.sub(rf"(?<![\w]){re.escape(name)}(?![\w])", f"n{i}_", text)
    text = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", text).replace("^", "**")
    value: Tensor = eval(text, {"__builtins__": {}}, known)
    return value
