"""Changes to a small model, and things that change nothing: the rows of "who catches what"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.freezing.content import raw


class Net(nn.Module):
    """One tensor for each way of looking wrong: by size, by dtype, by value."""

    def __init__(self, with_nan: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.coarse = nn.Parameter(torch.randn(64, 64, dtype=torch.bfloat16))
        self.count = nn.Parameter(torch.full((64,), 2**53), requires_grad=False)
        self.zeros = nn.Parameter(torch.zeros(64, 64))
        self.small = nn.Parameter(torch.randn(16))
        self.norm = nn.BatchNorm1d(64)
        if with_nan:
            self.gaps = nn.Parameter(torch.full((64, 64), float("nan")))


class Live:
    """A model in memory, and what it would be saved with."""

    def __init__(self, folder: Path, with_nan: bool, mapped: bool) -> None:
        torch.manual_seed(0)
        self.model = Net(with_nan)
        self.metadata = {"author": "one"}
        self.mapped = folder / "mapped.safetensors"
        if mapped:
            save_file(self.model.state_dict(), self.mapped)
            self.model.load_state_dict(load_file(self.mapped), assign=True)

    @property
    def weight(self) -> nn.Parameter:
        return self.model.linear.weight

    def tensors(self) -> dict[str, Tensor]:
        return self.model.state_dict(keep_vars=True)

    def bytes(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        """The slow truth."""
        return {name: raw(tensor) for name, tensor in self.tensors().items()}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        dense = {name: t.detach().contiguous() for name, t in self.tensors().items()}
        save_file(dense, path, self.metadata)


Do = Callable[[Live], object]


class Change(NamedTuple):
    """A row: what is done, whether bytes, dtype, shape or name of a tensor change by it.

    Attributes:
        name: what is done.
        do: does it.
        changed: whether a tensor is another one afterwards.
        with_nan: the model has a tensor of NaN.
        mapped: the weights are a file that is mapped into memory.
    """

    name: str
    do: Do
    changed: bool = True
    with_nan: bool = False
    mapped: bool = False


def one_ulp(live: Live) -> None:
    live.weight[3, 5] = torch.nextafter(live.weight[3, 5], torch.tensor(9.0))


def minus_zero(live: Live) -> None:
    live.model.zeros[0, 0] = -0.0


def to_nan(live: Live) -> None:
    live.weight[3, 5] = float("nan")


def nan_payload(live: Live) -> None:
    live.model.gaps.detach().view(torch.int32)[3, 5] += 1


def swap(live: Live) -> None:
    live.weight[3, [5, 6]] = live.weight[3, [6, 5]]


def relabel(live: Live) -> None:
    live.model.coarse.data = live.model.coarse.data.view(torch.float16)


def reshape(live: Live) -> None:
    live.weight.data = live.weight.data.view(32, 128)


def change_places(live: Live) -> None:
    live.weight.data, live.model.zeros.data = live.model.zeros.data, live.weight.data


def replace(live: Live) -> None:
    live.model.linear.weight = nn.Parameter(live.weight * 2)


def fused_step(live: Live) -> None:
    live.weight.grad = torch.ones_like(live.weight)
    torch.optim.SGD([live.weight], lr=0.1, fused=True).step()


def train_forward(live: Live) -> None:
    live.model.norm.train()(torch.randn(8, 64))


def batch_norm(live: Live) -> None:
    norm = live.model.norm
    F.batch_norm(torch.randn(8, 64), norm.running_mean, norm.running_var, training=True)


def numpy_alias(live: Live) -> None:
    live.weight.detach().numpy()[3, 5] += 1


def edit_file(live: Live) -> None:
    data = live.mapped.read_bytes()
    start = data.index(live.weight.detach().numpy().tobytes())
    with live.mapped.open("r+b") as file:
        file.seek(start)
        file.write(b"\x01\x02")


def other_strides(live: Live) -> None:
    live.weight.data = live.weight.data.t().contiguous().t()


def new_metadata(live: Live) -> None:
    live.metadata = {"author": "two"}


CHANGES = [
    Change("one weight, by 1 ULP", one_ulp),
    Change("+0.0 becomes -0.0", minus_zero),
    Change("one weight becomes NaN", to_nan),
    Change("one bit inside of a NaN", nan_payload, with_nan=True),
    Change("two elements swapped", swap),
    Change("int64, 2**53 + 1", lambda live: live.model.count[3].add_(1)),
    Change("zeros become ones", lambda live: live.model.zeros.fill_(1)),
    Change("row 5 zeroed", lambda live: live.weight[5].zero_()),
    Change("16 elements, plus 1", lambda live: live.model.small.add_(1)),
    Change("bfloat16 relabelled float16", relabel),
    Change("reshaped, 64×64 to 32×128", reshape),
    Change("two tensors trade places", change_places),
    Change("another Parameter in its place", replace),
    Change("cast to half and back", lambda live: live.model.linear.half().float()),
    Change("fused optimizer step", fused_step),
    Change("BatchNorm in training mode", train_forward),
    Change("F.batch_norm on its statistics", batch_norm),
    Change("write by .data", lambda live: live.weight.data.add_(1)),
    Change("write by a numpy alias", numpy_alias),
    Change("mapped file edited", edit_file, mapped=True),
    Change("nothing", lambda live: None, changed=False),
    Change("nothing, where a NaN is", lambda live: None, changed=False, with_nan=True),
    Change("equal values copied in", lambda live: live.weight.copy_(live.weight.clone()), False),
    Change("cast to double and back", lambda live: live.model.linear.double().float(), False),
    Change("other strides, same content", other_strides, changed=False),
    Change("metadata of the file edited", new_metadata, changed=False),
]
