"""Paths that no model can be had from, each with what to do instead."""

from __future__ import annotations

from pathlib import Path

from frostline.cli.targets.spelling import CHECKPOINTS, FORMS, nearest, typed
from frostline.errors import TargetError


def check_path(where: str) -> None:
    """Let a file pass that may be Python.

    Raises:
        TargetError: it is missing, a directory, a checkpoint or a notebook.
    """
    path = Path(where)
    if path.is_dir():
        raise TargetError(_directory(path))
    if not path.is_file():
        raise TargetError(_missing(path))
    if path.suffix in CHECKPOINTS:
        raise TargetError(_checkpoint(path))
    if path.suffix == ".ipynb":
        raise TargetError(
            f"{where} is a notebook. Copy the cell that builds the model into a function of a "
            f"file and type\n\n{typed('build.py:model')}"
        )


def _directory(path: Path) -> str:
    files = sorted(file.name for file in path.glob("*.py") if file.name != "__init__.py")
    example = str(path / (files[0] if files else "train.py"))
    return f"{path} is a directory. Name a file in it, to see what it has:\n\n{typed(example)}"


def _missing(path: Path) -> str:
    names = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    close = nearest(path.name, names)
    return f"no such file: {path}{close}. A target is {FORMS}"


def _checkpoint(path: Path) -> str:
    return (
        f"{path} is a checkpoint: it holds tensors, and a checkpoint has no modes or optimizer. "
        "In a file, write a function that builds the model and loads it:\n\n"
        f"{_loading(path)}\n\n"
        f"and type\n\n{typed('build.py:build')}"
    )


def _loading(path: Path) -> str:
    name = str(path)
    if path.suffix == ".safetensors":
        first, tensors = "from safetensors.torch import load_file", f"load_file({name!r})"
    else:
        first, tensors = "import torch", f"torch.load({name!r}, weights_only=True)"
    if path.suffix == ".ckpt":
        tensors += '["state_dict"]'
    return (
        f"  {first}\n"
        "  def build():\n"
        "      model = ...  # the class that the checkpoint was saved from\n"
        f"      model.load_state_dict({tensors})\n"
        "      return model"
    )
