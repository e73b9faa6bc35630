"""A QLoRA-like base: int8 weights of torchao under adapters, bytes equal after 50 steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import FrozenStateChanged
from tests.everything import bits

with warnings.catch_warnings():
    # torchao registers enumerations in a way that the newest torch deprecates.
    warnings.simplefilter("ignore")
    torchao_quantization = pytest.importorskip("torchao.quantization")


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it, as LoRA does."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_A.t() @ self.lora_B.t()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.num_batches_tracked.fill_(9)
        self.first = nn.Linear(32, 32)
        self.drop = nn.Dropout(0.1)
        self.second = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(torch.relu(self.first(self.norm(x)))))


def quantized() -> nn.Module:
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchao_quantization.quantize_(net, torchao_quantization.Int8WeightOnlyConfig())
    net.first, net.second = Adapted(net.first), Adapted(net.second)
    return net


def plain(tensor: Tensor, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The dense tensors inside of a subclass, by `__tensor_flatten__`, at any depth."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    inner, _ = tensor.__tensor_flatten__()
    for key in inner:
        yield from plain(getattr(tensor, key), f"{name}.{key}")


def base_bytes(net: nn.Module) -> dict[str, bytes]:
    found = dict(net.named_parameters()) | dict(net.named_buffers())
    return {
        path: bits(dense)
        for name, tensor in found.items()
        if "lora" not in name
        for path, dense in plain(tensor.detach(), name)
    }


def train(net: nn.Module, steps: int = 50) -> tuple[float, float]:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(16, 32, generator=draw), torch.randint(4, (16,), generator=draw)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        net.train()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def _is_int8(net: nn.Module) -> bool:
    return any(t.dtype == torch.int8 for _, t in plain(net.first.base.weight.detach()))


ADAPTERS = ["**.lora_A", "**.lora_B"]


@pytest.mark.parametrize("mode", ["eval", "follow"])
def test_bytes_are_equal_after_50_steps(mode: str) -> None:
    net = quantized()
    assert _is_int8(net)
    part = fl.freeze(net, exclude=ADAPTERS, mode=mode)
    before = base_bytes(net)
    assert len(before) >= 9
    first, last = train(net)
    assert last < first
    assert base_bytes(net) == before
    assert part.ok
    assert net.drop.training == (mode == "follow")


def test_control_by_flag_only_the_statistics_drift() -> None:
    net = quantized()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora" in name)
    before = base_bytes(net)
    train(net)
    after = base_bytes(net)
    drifted = {name for name in before if before[name] != after[name]}
    assert drifted == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_one_bit_of_an_int8_weight_is_named() -> None:
    net = quantized()
    part = fl.freeze(net, exclude=ADAPTERS)
    raw = next(t for _, t in plain(net.first.base.weight.detach()) if t.dtype == torch.int8)
    raw.view(torch.uint8)[3, 5] ^= 1
    with pytest.raises(FrozenStateChanged, match=r"first\.base\.weight"):
        part.assert_unchanged()
    assert [c.name for c in part.changes()] == ["first.base.weight"]
    raw.view(torch.uint8)[3, 5] ^= 1
    assert part.ok


def test_one_scale_of_an_int8_weight_is_named() -> None:
    net = quantized()
    part = fl.freeze(net, exclude=ADAPTERS)
    scale = next(t for _, t in plain(net.second.base.weight.detach()) if t.is_floating_point())
    scale.reshape(-1)[0] *= 1.5
    assert [(c.name, c.kind) for c in part.changes()] == [("second.base.weight", "value")]


def test_manifest_of_a_quantized_part() -> None:
    net = quantized()
    part = fl.freeze(net, exclude=ADAPTERS)
    before = fl.manifest(part)
    train(net, steps=2)
    assert before.compare(fl.manifest(part)) == []


def test_flagged_and_undo() -> None:
    net = quantized()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora" in name)
    part = fl.freeze(net, fl.FLAGGED)
    before = base_bytes(net)
    train(net, steps=3)
    assert base_bytes(net) == before
    part.undo()
    net.train()
    assert net.norm.training
