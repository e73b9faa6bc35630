"""One rank of a real training: frozen, wrapped by FSDP2 or DDP, three steps, bytes compared."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import frostline as fl


class Net(nn.Module):
    """The same weights on every rank; running statistics that are not those of the data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8)
        )
        self.head = nn.Linear(8, 2)
        norm = self.body[1]
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.num_batches_tracked.fill_(9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def state(module: nn.Module) -> dict[str, Tensor]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: whole(tensor) for name, tensor in named.items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return sorted(name for name in before if not torch.equal(before[name], after[name]))


def train(model: nn.Module, rank: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(6, 8, generator=generator) + 1).square().mean().backward()
        optimizer.step()


def wrap(kind: str, net: Net) -> nn.Module:
    if kind == "DDP":
        return DistributedDataParallel(net)
    # The norm on its own too, so that its class becomes one of FSDP2's.
    for module in (net.body[1], net.body, net):
        fully_shard(module)
    return net


def run(kind: str, order: str, rank: int) -> None:
    net = Net()
    part = None
    if order == "freeze first":
        part = fl.freeze(net, "body")
    model = wrap(kind, net)
    if order == "wrap first":
        part = fl.freeze(model, "body")
    body, head = state(net.body), state(net.head)
    train(model, rank)
    drifted, trained = moved(body, state(net.body)), moved(head, state(net.head))
    if order == "free":
        assert "1.running_mean" in drifted, drifted
        assert "0.weight" in drifted, drifted
        return
    assert part is not None
    assert drifted == [], drifted
    assert trained == ["bias", "weight"], trained
    drift = [c for c in part.changes() if c.severity == "drift"]
    assert drift == [], drift
    part.undo()
    net.train()
    assert net.body[1].training
    assert net.body[3].training


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    done = []
    for kind, order in (
        ("DDP", "free"),
        ("DDP", "freeze first"),
        ("FSDP2", "free"),
        ("FSDP2", "freeze first"),
        ("FSDP2", "wrap first"),
    ):
        run(kind, order, rank)
        done.append(f"{kind}, {order}")
    dist.barrier()
    dist.destroy_process_group()
    Path(f"{store}.{rank}").write_text("\n".join(done))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
