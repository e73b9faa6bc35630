"""One rank of two: the loop, on its own share of the batches, and what it left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from frostline.accumulation.accumulator import Accumulator
from frostline.errors import AccumulationError
from tests.accumulation.own_loop.loops import (
    batch_norm_net,
    cross_entropy,
    labels_that_count,
    layer_norm_net,
    microbatches,
)

SIZES = [[3, 1, 4, 2, 5], [2, 6, 1, 3, 2]]
COUNT = 2


def share(rank: int) -> list[tuple[Tensor, Tensor]]:
    return microbatches(SIZES[rank], seed=rank)


def train(model: nn.Module, module: nn.Module, batches: list[Any], **options: Any) -> Accumulator:
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    acc = Accumulator(model, optimizer, COUNT, max_grad_norm=0.3, **options)
    for batch in acc.iterate(batches):
        acc.backward(cross_entropy(model, batch), items=labels_that_count(batch))
    return acc


def left(acc: Accumulator, module: nn.Module) -> dict[str, Any]:
    tensors = [t.detach() for t in (*module.parameters(), *module.buffers())]
    full = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors]
    return {"loss": acc.loss, "norm": acc.grad_norm, "steps": acc.steps, "tensors": full}


def replicated(rank: int) -> dict[str, Any]:
    module = layer_norm_net()
    model = DistributedDataParallel(module)
    exchanges: list[int] = []
    model.register_comm_hook(None, counting(exchanges))
    found = left(train(model, module, share(rank)), module)
    return found | {"exchanges": len(exchanges)}


def bucket_views(rank: int) -> dict[str, Any]:
    module = layer_norm_net()
    model = DistributedDataParallel(module, gradient_as_bucket_view=True)
    return left(train(model, module, share(rank)), module)


def part_of_the_model(rank: int) -> dict[str, Any]:
    """Only a part exchanges gradients, and the parts are called one by one."""
    module = layer_norm_net()
    model = nn.ModuleList([module[:2], DistributedDataParallel(module[2:])])
    for parameter in module[:2].parameters():
        parameter.requires_grad_(False)
    acc = Accumulator(model, SGD(model[1].parameters(), lr=0.1), COUNT)
    for x, y in acc.iterate(share(rank)):
        loss = cross_entropy(lambda x: model[1](model[0](x)), (x, y))  # type: ignore[arg-type]
        acc.backward(loss, items=(y != -100).sum())
    return left(acc, module)


def counting(exchanges: list[int]) -> Any:
    def exchange(state: Any, bucket: Any) -> Any:
        exchanges.append(1)
        return allreduce_hook(state, bucket)

    exchange.__annotations__ = allreduce_hook.__annotations__
    return exchange


def left_out(rank: int) -> dict[str, Any]:
    """The last batch has no backward on either rank, so that the window ends without exchange."""
    module = layer_norm_net()
    model = DistributedDataParallel(module, find_unused_parameters=True)
    acc = Accumulator(model, SGD(model.parameters(), lr=0.1, momentum=0.9), 3, max_grad_norm=0.3)
    for k, batch in enumerate(acc.iterate(share(rank))):
        if k < 4:
            acc.backward(cross_entropy(model, batch), items=labels_that_count(batch))
    return left(acc, module)


def with_norms(rank: int) -> dict[str, Any]:
    module = batch_norm_net()
    model = DistributedDataParallel(module, broadcast_buffers=False)
    batches = [(x.repeat(2, 1), y.repeat(2)) for x, y in share(rank)[:COUNT]]
    return left(train(model, module, batches), module)


def infinite_on_one(rank: int) -> dict[str, Any]:
    module = layer_norm_net()
    model = DistributedDataParallel(module)
    batches = share(rank)
    if rank == 1:
        batches[1][0].fill_(float("inf"))
    try:
        train(model, module, batches)
    except AccumulationError as error:
        return {"error": str(error)}
    return {}


def sharded(rank: int) -> dict[str, Any]:
    module = layer_norm_net()
    for part in (module[0], module[3]):
        fully_shard(part)
    fully_shard(module)
    return left(train(module, module, share(rank)), module)


def sharded_unannounced(rank: int) -> dict[str, Any]:
    module = layer_norm_net()
    fully_shard(module)
    acc = Accumulator(module, SGD(module.parameters(), lr=0.1), 3)
    errors = []
    for act in (acc.flush, lambda: acc.state_dict(gradients=True)):
        with acc.microbatch():
            acc.backward(cross_entropy(module, share(rank)[0]))
        try:
            act()
        except AccumulationError as error:
            errors.append(str(error))
        acc.discard()
    return {"error": " ".join(errors)}


SCENARIOS = {
    f.__name__: f
    for f in (
        replicated,
        bucket_views,
        part_of_the_model,
        left_out,
        with_norms,
        infinite_on_one,
        sharded,
        sharded_unannounced,
    )
}


def main(store: str, rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {name: scenario(rank) for name, scenario in SCENARIOS.items()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
