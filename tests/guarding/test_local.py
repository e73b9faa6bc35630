"""What is local of a tensor: a shard is read without a word to other ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from frostline.guarding import local
from frostline.guarding.identity import Identity
from frostline.guarding.reference import Reference
from frostline.guarding.target import resolve
from tests.test_content import Ops, Scaled, mesh, slow_bytes

__all__ = ["mesh"]  # a fixture


def test_other_tensors_are_local_as_they_are() -> None:
    for tensor in (
        torch.ones(2),
        nn.Parameter(torch.ones(2)),
        Scaled(torch.ones(2), torch.ones(1)),
    ):
        assert local.of(tensor) is tensor
        assert not local.is_shard(tensor)
    assert slow_bytes(torch.ones(2)) == b"".join(
        slow_bytes(piece) for piece in local.read("w", torch.ones(2)).pieces
    )


def test_a_shard_is_read_where_it_lies(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    shard = distribute_tensor(torch.randn(8, 4), mesh, [Shard(0)])
    assert local.is_shard(shard)
    with Ops() as ops:
        (piece,) = local.read("w", shard).pieces
    assert piece is shard._local_tensor
    assert ops.names == []


def test_a_shard_is_watched_by_its_local_memory(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    net = nn.Module()
    shard = distribute_tensor(torch.randn(8, 4), mesh, [Shard(0)])
    net.weight = nn.Parameter(shard, requires_grad=False)
    reference = Reference("weight", net.weight, 7, keep_copy=True)
    identity = Identity(resolve(net, "weight"))
    assert not identity.look(everything=True).moved
    net.weight._local_tensor.view(-1)[31] += 1
    assert reference.changed_blocks() == [(0, 0)]
    net.weight._local_tensor.view(-1)[31] -= 1
    net.weight._local_tensor = net.weight._local_tensor.clone()
    assert [w.name for w in identity.look().moved] == ["weight"]
    assert reference.rebind(net.weight)
