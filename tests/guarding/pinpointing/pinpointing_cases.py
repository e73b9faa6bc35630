"""What the tests of pinpointing share: real memory over clones, and scripts with a marked line."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from frostline.guarding.pinpointing import Pinpoint

MARK = "# <-"


class Copies:
    """Watched memory: the tensors of a module, and a copy of each to compare with."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.copies = {name: tensor.clone() for name, tensor in self.tensors.items()}
        self.looks = 0
        self.asked: list[str] = []

    def ranges(self) -> list[tuple[int, int, str]]:
        return sorted(
            (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), name)
            for name, t in self.tensors.items()
        )

    def changed(self, names: Iterable[str] | None) -> list[str]:
        self.looks += names is None
        asked = self.tensors if names is None else list(names)
        self.asked += [] if names is None else asked
        found = [n for n in asked if not torch.equal(self.tensors[n], self.copies[n])]
        self.copies |= {n: self.tensors[n].clone() for n in found}
        return found


def net() -> nn.Sequential:
    """A backbone with statistics (watched by `pinpoint`) and a head."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(4, 4))
    model.add_module("norm", nn.BatchNorm1d(4))
    model.add_module("head", nn.Linear(4, 2))
    return model


def pinpoint(model: nn.Module) -> tuple[Pinpoint, Copies]:
    """Watching all of the model but its head."""
    state = model.state_dict(keep_vars=True)
    memory = Copies({name: t for name, t in state.items() if not name.startswith("head")})
    return Pinpoint(memory), memory


def script(folder: Path, source: str, name: str = "train.py") -> ModuleType:
    """A module of the user's, in a file of its own."""
    path = folder / name
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def marked(source: str) -> int:
    """The number of the one line that ends with the mark."""
    (line,) = [n for n, text in enumerate(source.splitlines(), 1) if text.endswith(MARK)]
    return line


def frame_traces() -> list[Any]:
    """The trace functions of this thread's frames but the innermost."""
    frame = sys._getframe(1)
    found = []
    while frame is not None:
        found.append(frame.f_trace)
        frame = frame.f_back  # type: ignore[assignment]
    return found


def touched() -> dict[str, Any]:
    """All that pinpointing touches, to compare before and after."""
    from torch._dynamo import eval_frame

    size = torch._C._len_torch_dispatch_stack()
    return {
        "trace": sys.gettrace(),
        "threads' trace": threading.gettrace(),
        "frames": frame_traces()[1:],
        "modes": [torch._C._get_dispatch_stack_at(i) for i in range(size)],
        "stance": eval_frame._stance,
    }


@contextmanager
def untraced() -> Iterator[None]:
    """Without the tracer of a coverage tool, which would keep its place."""
    here, threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.settrace(here)
        threading.settrace(threads)  # type: ignore[arg-type]


def write(model: nn.Module) -> None:
    """One write that the dispatcher sees."""
    model.fc.bias.data.add_(1)
