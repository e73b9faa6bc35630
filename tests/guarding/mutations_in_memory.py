"""Writes into the memory of frozen tensors: by torch, past torch, and by optimizers."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from tests.guarding.mutation import CNN, Mutation, past, quietly, to_odd
from tests.guarding.pages.in_child import LIBC
from tests.guarding.subjects import Run, loss_of

# --- writes in place ---------------------------------------------------------------------------


@torch.inference_mode()
def in_inference_mode(run: Run) -> None:
    run.weight.mul_(0.9)


def alias(run: Run) -> None:
    run.past["alias"] = run.weight.data


def clip(run: Run) -> None:
    for parameter in run.net.parameters():
        parameter.data.clamp_(-0.01, 0.01)


@torch.no_grad()
def prune(run: Run) -> None:
    run.weight.mul_(run.weight.abs() > run.weight.abs().median())


@torch.no_grad()
def shrink_all(run: Run) -> None:
    torch._foreach_mul_(list(run.net.backbone.parameters()), 0.999)


HALVES = np.full(4, 0.5, np.float32).tobytes()


def memory(t: Tensor) -> memoryview:
    return memoryview(t.numpy()).cast("B")


def memmove(t: Tensor) -> None:
    ctypes.memmove(t.data_ptr() + 400, HALVES, len(HALVES))


def memcpy(t: Tensor) -> None:
    LIBC.memcpy(ctypes.c_void_p(t.data_ptr() + 4), HALVES, ctypes.c_size_t(len(HALVES)))


def read_into(t: Tensor) -> None:
    with TemporaryFile(buffering=0) as file:
        file.write(HALVES)
        file.seek(0)
        file.readinto(memory(t)[40_000:40_016])


def read_vector(t: Tensor) -> None:
    reading, writing = os.pipe()
    os.write(writing, HALVES)
    os.readv(reading, [memory(t)[8:24]])
    os.close(reading)
    os.close(writing)


def storage_copy(t: Tensor) -> None:
    t.untyped_storage().copy_((t * 1.5 + 0.1).untyped_storage())


def next_number(t: Tensor) -> None:
    t.view(torch.int32).view(-1)[7] += 1


def in_a_thread(t: Tensor) -> None:
    thread = threading.Thread(target=lambda: t.mul_(0.5))
    thread.start()
    thread.join()


def two_ranks(work: Callable[[Any, Tensor], dist.Work], t: Tensor) -> None:
    """Two ranks of gloo in two threads; the other one brings other weights."""
    store, tensors = dist.HashStore(), (t * 1.5 + 0.1, t)

    def rank(number: int) -> None:
        work(dist.ProcessGroupGloo(store, number, 2), tensors[number]).wait()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@torch.library.custom_op("frostline_tiers::undeclared", mutates_args=())
def undeclared(weight: Tensor) -> Tensor:
    weight.numpy()[0] = 3.0
    return weight.clone()


def compiled(run: Run) -> None:
    torch.compiler.reset()
    torch.compile(quietly(lambda w: w.mul_(2)), backend="aot_eager")(run)


IN_MEMORY = [
    Mutation("noise under no_grad", quietly(lambda w: w.add_(torch.randn_like(w), alpha=0.1))),
    Mutation("weights clipped through .data", clip, place="loader"),
    Mutation("an item assigned", quietly(lambda w: w.__setitem__(0, 5.0))),
    Mutation("a mask multiplied", prune),
    Mutation("out=", quietly(lambda w: torch.mul(w, 0.9, out=w)), place="backward"),
    Mutation("out=.data", past(lambda w: torch.mul(w, 0.9, out=w.data))),
    Mutation("nn.init", lambda run: nn.init.normal_(run.weight), cause="initialised|drawn anew"),
    Mutation("_foreach_mul_ of all", shrink_all),
    Mutation("a view", quietly(lambda w: w.view(-1)[5:9].zero_()), place="forward"),
    Mutation("detach()", lambda run: run.weight.detach().add_(1)),
    Mutation("inference_mode", in_inference_mode),
    Mutation("an alias of .data from before", lambda run: run.past["alias"].mul_(2), before=alias),
    Mutation("numpy", past(lambda w: np.multiply(w.numpy(), 2, out=w.numpy())), place="loader"),
    Mutation("memoryview", past(lambda w: memory(w).__setitem__(slice(0, 16), HALVES))),
    Mutation("ctypes.memmove", past(memmove), place="forward"),
    Mutation("memcpy of the C library", past(memcpy), place="backward"),
    Mutation("read(2) into the tensor", past(read_into), place="loader"),
    Mutation("readv(2) into the tensor", past(read_vector), place="loader"),
    Mutation("dlpack", past(lambda w: torch.from_dlpack(w).add_(1))),
    Mutation("storage fill_", past(lambda w: w.untyped_storage().fill_(1)), cause="filled"),
    Mutation("storage copy_", past(storage_copy)),
    Mutation("storage item", past(lambda w: w.untyped_storage().__setitem__(5, 77))),
    Mutation("1 ULP", past(next_number)),
    Mutation("-0.0 for 0.0", to_odd(lambda odd: odd[0].neg_())),
    Mutation("another NaN", to_odd(lambda odd: odd.view(torch.int32)[1].add_(1))),
    Mutation("another thread", past(in_a_thread)),
    Mutation("all_reduce", past(partial(two_ranks, lambda g, t: g.allreduce(t)))),
    Mutation("broadcast", past(partial(two_ranks, lambda g, t: g.broadcast(t, 0)))),
    Mutation("a custom operator that does not say so", past(undeclared), place="forward"),
    Mutation("compiled by aot_eager", compiled, models=CNN),
]


# --- optimizers --------------------------------------------------------------------------------


def ones(run: Run) -> None:
    """As manual averaging of gradients over ranks does: what has none gets one."""
    for parameter in run.net.backbone.parameters():
        parameter.grad = torch.ones_like(parameter)


def zeros(run: Run) -> None:
    for parameter in run.net.backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)


def momentum(run: Run) -> None:
    """The backbone was trained by this optimizer until it was frozen."""
    run.net.backbone.requires_grad_(True)
    loss_of(run.net, run.batch).backward()
    run.optimizer.step()
    run.net.zero_grad()
    run.net.backbone.requires_grad_(False)


def all_of(kind: Callable[..., Optimizer], **options: Any) -> Any:
    return partial(kind, lr=0.1, **options)


STEPPED = partial(
    Mutation, do=ones, place="backward", cause="(SGD|Adam|AdamW|RMSprop), group 0 .*stepped on"
)
OPTIMIZERS = [
    STEPPED("SGD, for-loop", optimizer=all_of(SGD, foreach=False)),
    STEPPED("SGD, foreach", optimizer=all_of(SGD, foreach=True)),
    STEPPED("SGD, fused", optimizer=all_of(SGD, fused=True)),
    STEPPED("Adam, foreach", optimizer=all_of(Adam, foreach=True)),
    STEPPED("AdamW, fused", optimizer=all_of(AdamW, fused=True)),
    STEPPED("RMSprop", optimizer=all_of(RMSprop)),
    Mutation(
        "zero gradients and decay",
        zeros,
        place="backward",
        cause="decay",
        optimizer=all_of(SGD, weight_decay=0.1),
    ),
    Mutation(
        "zero gradients and momentum",
        zeros,
        place="backward",
        cause="momentum",
        before=momentum,
        optimizer=all_of(SGD, momentum=0.9),
    ),
]
