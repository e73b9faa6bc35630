"""Ways to write and to read the memory of a tensor of 65536 floats."""

from __future__ import annotations

import copy
import ctypes
import io
import os
import pickle
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.guarding.pages.in_child import LIBC, in_child

SIZE = 1 << 16
AT = 40_000
"""The element that every writer of one element writes."""

FOUR = np.float32(3.5).tobytes()


def bits_of(t: Tensor) -> Tensor:
    return t.view(torch.int32)


def memory_of(t: Tensor) -> memoryview:
    return memoryview(t.numpy()).cast("B")[4 * AT : 4 * AT + 4]


def address_of(t: Tensor) -> int:
    return t.data_ptr() + 4 * AT


def readv(t: Tensor) -> None:
    reading, writing = os.pipe()
    os.write(writing, FOUR)
    os.readv(reading, [memory_of(t)])
    os.close(reading)
    os.close(writing)


def readinto(t: Tensor) -> None:
    with TemporaryFile(buffering=0) as file:
        file.write(FOUR)
        file.seek(0)
        file.readinto(memory_of(t))


def own_memory_file(t: Tensor) -> None:
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(address_of(t))
        memory.write(FOUR)


def in_a_thread(t: Tensor) -> None:
    thread = threading.Thread(target=lambda: t.__setitem__(AT, 3.0))
    thread.start()
    thread.join()


def write_and_undo(t: Tensor) -> None:
    old = t[AT].item()
    t[AT] = 9.0
    t[AT] = old


def equal_bytes(t: Tensor) -> None:
    t[AT] = t[AT].item()


ONE: dict[str, Callable[[Tensor], object]] = {
    "setitem": lambda t: t.__setitem__(AT, 3.0),
    "in-place add on a view": lambda t: t[AT : AT + 1].add_(1.0),
    ".data": lambda t: t.data[AT].fill_(3.0),
    "view of another dtype": lambda t: t.view(torch.uint8)[4 * AT].fill_(1),
    "numpy": lambda t: t.numpy().__setitem__(AT, 3.0),
    "memoryview": lambda t: memory_of(t).__setitem__(slice(0, 4), FOUR),
    "ctypes.memmove": lambda t: ctypes.memmove(address_of(t), FOUR, 4),
    "memcpy of the C library": lambda t: LIBC.memcpy(
        ctypes.c_void_p(address_of(t)), FOUR, ctypes.c_size_t(4)
    ),
    "os.readv": readv,
    "file.readinto": readinto,
    "/proc/self/mem": own_memory_file,
    "storage item": lambda t: t.untyped_storage().__setitem__(4 * AT, 1),
    "dlpack": lambda t: torch.from_dlpack(t).__setitem__(AT, 3.0),
    "index_put_": lambda t: t.index_put_((torch.tensor([AT]),), torch.tensor(3.0)),
    "another thread": in_a_thread,
    "write and undo": write_and_undo,
    "1 ULP": lambda t: bits_of(t)[AT].add_(1),
    "a sign": lambda t: bits_of(t)[AT].bitwise_xor_(-(1 << 31)),
    "NaN with a payload": lambda t: bits_of(t)[AT].fill_(0x7FC0_0001),
    "equal bytes": equal_bytes,
}


def optimizer_step(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], t: Tensor) -> None:
    parameter = nn.Parameter(t)
    parameter.grad = torch.ones_like(parameter)
    make([parameter]).step()


def load_state_dict(t: Tensor) -> None:
    net = nn.Linear(SIZE, 1, bias=False)
    net.weight = nn.Parameter(t.view(1, SIZE))
    net.load_state_dict({"weight": torch.zeros(1, SIZE)})


def batch_norm(t: Tensor) -> None:
    F.batch_norm(torch.ones(2, SIZE), t, torch.ones(SIZE), training=True)


def max_norm(t: Tensor) -> None:
    F.embedding(torch.arange(1024), t.view(1024, 64), max_norm=0.5)


def average(t: Tensor) -> None:
    net = nn.Linear(SIZE, 1, bias=False)
    averaged = AveragedModel(net)
    averaged.module.weight.data = t.view(1, SIZE)
    averaged.update_parameters(net)


def two_ranks(work: Callable[[dist.ProcessGroupGloo, Tensor], dist.Work], t: Tensor) -> None:
    """Two ranks of gloo in two threads; the other one brings ones."""
    store, tensors = dist.HashStore(), (torch.ones(SIZE), t)

    def rank(number: int) -> None:
        group = dist.ProcessGroupGloo(store, number, 2, timedelta(seconds=30))
        work(group, tensors[number]).wait()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


ALL: dict[str, Callable[[Tensor], object]] = {
    "add_": lambda t: t.add_(1.0),
    "SGD": lambda t: optimizer_step(lambda p: torch.optim.SGD(p, 0.1, foreach=False), t),
    "SGD, fused": lambda t: optimizer_step(lambda p: torch.optim.SGD(p, 0.1, fused=True), t),
    "SGD, foreach": lambda t: optimizer_step(lambda p: torch.optim.SGD(p, 0.1, foreach=True), t),
    "AdamW, fused": lambda t: optimizer_step(lambda p: torch.optim.AdamW(p, fused=True), t),
    "torch._foreach_add_": lambda t: torch._foreach_add_([t], 1.0),
    "storage fill_": lambda t: t.untyped_storage().fill_(1),
    "copy_": lambda t: t.copy_(torch.zeros(SIZE)),
    "out=": lambda t: torch.add(torch.ones(SIZE), 1.0, out=t),
    "load_state_dict": load_state_dict,
    "F.batch_norm": batch_norm,
    "max_norm of an embedding": max_norm,
    "AveragedModel": average,
    "broadcast": lambda t: two_ranks(lambda group, x: group.broadcast(x, 0), t),
    "all_reduce": lambda t: two_ranks(lambda group, x: group.allreduce(x), t),
    "nn.init": lambda t: nn.init.normal_(t),
}


def write_to_file(t: Tensor) -> None:
    with TemporaryFile(buffering=0) as file:
        file.write(t.numpy())


def save_safetensors(t: Tensor) -> None:
    with TemporaryDirectory() as folder:
        save_file({"t": t}, str(Path(folder) / "t.safetensors"))


def backward_through(t: Tensor) -> None:
    x = torch.ones(4, 256, requires_grad=True)
    F.linear(x, t.view(256, 256)).sum().backward()
    assert x.grad is not None


READERS: dict[str, Callable[[Tensor], object]] = {
    "forward": lambda t: F.linear(torch.ones(4, 256), t.view(256, 256)),
    "backward through it": backward_through,
    "numpy sum": lambda t: t.numpy().sum(),
    "clone": lambda t: t.clone(),
    "deepcopy": copy.deepcopy,
    "torch.save": lambda t: torch.save(t, io.BytesIO()),
    "pickle": pickle.dumps,
    "safetensors": save_safetensors,
    "write(2) of the memory": write_to_file,
    "a forked child": lambda t: in_child(lambda: t.sum().item()),
    "tobytes": lambda t: t.numpy().tobytes(),
    "embedding without max_norm": lambda t: F.embedding(torch.arange(1024), t.view(1024, 64)),
    "eval batch_norm": lambda t: F.batch_norm(torch.ones(2, SIZE), t, t.abs()),
    "share of a view": lambda t: t.view(256, 256).t()[3:7].unbind(),
}
