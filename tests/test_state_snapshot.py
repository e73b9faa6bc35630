"""A snapshot comes back to one moment as often as one likes, whatever became of the memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from frostline._state import Snapshot, same_bits, write_bits
from tests.everything import everything, without_versions
from tests.test_state import _two_steps, mlp
from tests.zoo import ZOO


def test_a_snapshot_restores_as_often_as_one_likes() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    optimizer.step()
    snapshot = Snapshot.take(model, [optimizer])
    before = everything(model, optimizer)
    draws, ends = [], []
    for _ in range(3):
        draws.append(torch.rand(3).tolist())
        _two_steps(model, optimizer)
        optimizer.param_groups[0]["lr"].fill_(3)
        ends.append(everything(model)["tensors"][0][3])
        snapshot.restore()
        assert without_versions(everything(model, optimizer)) == without_versions(dict(before))
    assert draws[0] == draws[1] == draws[2]
    assert ends[0] == ends[1] == ends[2]


def test_a_snapshot_leaves_versions_of_equal_content_alone() -> None:
    model = mlp()
    snapshot = Snapshot.take(model)
    before = everything(model)
    for _ in range(2):
        model.head.weight.data = model.head.weight.data.clone()
        snapshot.restore()
    assert everything(model) == before


def test_aliases_see_what_is_put_back() -> None:
    model = mlp()
    alias = model.head.weight.detach().numpy()
    view, old = model.head.weight.data[0], alias.copy()
    snapshot = Snapshot.take(model)
    alias[:] = 0
    model.head.weight.data = torch.ones_like(model.head.weight)
    snapshot.restore()
    assert np.array_equal(alias, old)
    assert np.array_equal(view.numpy(), old[0])
    assert model.head.weight.data_ptr() == alias.ctypes.data


def test_freed_and_resized_memory() -> None:
    model = nn.BatchNorm1d(4)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    snapshot = Snapshot.take(model)
    for _ in range(2):
        model.weight.untyped_storage().resize_(0)
        model.running_mean.resize_(2)
        snapshot.restore()
        assert all(same_bits(kept[k], t) for k, t in model.state_dict().items())


def test_a_graph_from_before_the_disturbance_can_go_backward() -> None:
    model, entry = ZOO["mlp_bn1d"].build(), ZOO["mlp_bn1d"]
    snapshot, found = Snapshot.take(model), []
    for disturb in (False, True):
        loss = entry.loss(model, entry.batch())
        if disturb:
            for parameter in model.parameters():
                parameter.data.mul_(2)
        snapshot.restore()
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


def test_plain_tensor_attributes() -> None:
    model = nn.Linear(2, 2)
    model.scale = torch.ones(3)
    snapshot = Snapshot.take(model)
    scale, kept = model.scale, model.scale.clone()
    model.scale.fill_(2)
    model.scale = torch.zeros(1)
    snapshot.restore()
    assert model.scale is scale
    assert same_bits(scale, kept)


def test_an_optimizer_that_loaded_a_state_or_lost_a_group() -> None:
    model = mlp()
    groups = [{"params": model.backbone.parameters()}, {"params": model.head.parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    optimizer.step()
    before = without_versions(everything(model, optimizer))
    objects = optimizer.state, optimizer.param_groups, [*optimizer.param_groups]
    snapshot = Snapshot.take(model, [optimizer])
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups.pop()
    optimizer.state.clear()
    optimizer.state["global"] = 3
    snapshot.restore()
    assert without_versions(everything(model, optimizer)) == before
    assert optimizer.state is objects[0]
    assert scheduler.optimizer.param_groups is objects[1]
    assert all(a is b for a, b in zip(optimizer.param_groups, objects[2], strict=True))


def test_state_tensors_stay_the_same_objects() -> None:
    """A captured CUDA graph would write to the old ones."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    optimizer.step()
    kept = [v for state in optimizer.state.values() for v in state.values()]
    snapshot = Snapshot.take(model, [optimizer])
    _two_steps(model, optimizer)
    snapshot.restore()
    now = [v for state in optimizer.state.values() for v in state.values()]
    assert all(a is b for a, b in zip(kept, now, strict=True))


def test_tensors_of_an_optimizer_outside_of_the_model() -> None:
    model, temperature = mlp(), nn.Parameter(torch.tensor([2.0]))
    snapshot = Snapshot.take(model)
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    snapshot.add(optimizer)
    temperature.grad = torch.ones(1)
    optimizer.step()
    assert temperature.item() != 2
    snapshot.restore()
    assert temperature.item() == 2
    assert temperature.grad is None


def test_an_optimizer_that_keeps_something_under_a_name() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state["rounds"] = [1]
    snapshot = Snapshot.take(model, [optimizer])
    for _ in range(2):
        optimizer.state["rounds"].append(2)
        snapshot.restore()
        assert dict(optimizer.state) == {"rounds": [1]}


class Odd(nn.Module):
    """Tensors that cannot be copied like others."""

    def __init__(self) -> None:
        super().__init__()
        self.lazy = nn.LazyLinear(3)
        self.table = nn.Embedding(5, 2, sparse=True)
        self.register_buffer("expanded", torch.ones(1).expand(4))
        self.register_buffer("csr", torch.eye(3).to_sparse_csr())
        self.register_buffer(
            "integers", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        )
        self.register_buffer("conjugate", torch.ones(2, dtype=torch.complex64).mul(1j).conj())
        self.register_buffer("nothing", torch.empty(3, device="meta"))
        with torch.inference_mode():
            self.register_buffer("inference", torch.ones(3))


def _odd_contents(model: Odd) -> list[object]:
    grad = model.table.weight.grad
    assert grad is not None
    return [
        id(grad),
        grad.to_dense().tolist(),
        model.expanded.tolist(),
        model.csr.to_dense().tolist(),
        model.integers.dequantize().tolist(),
        model.conjugate.tolist(),
        model.inference.tolist(),
    ]


def test_odd_tensors() -> None:
    model = Odd()
    model.table(torch.tensor([1, 2])).sum().backward()
    snapshot, before = Snapshot.take(model), _odd_contents(model)
    for _ in range(2):
        model.table(torch.tensor([3])).sum().backward()
        model.table.weight.grad._values().fill_(9)
        model.expanded[:1].fill_(5)
        model.csr.values().fill_(5)
        model.integers.copy_(torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8))
        model.conjugate.fill_(3)
        with torch.inference_mode():
            model.inference.fill_(4)
        after = _odd_contents(model)
        assert not any(a == b for a, b in zip(after[1:], before[1:], strict=True))
        snapshot.restore()
        assert _odd_contents(model) == before


def test_a_wrapper_subclass() -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, other = nn.Linear(8, 8), nn.Linear(8, 8)
    for module in (model, other):
        quantize_(module, Int8WeightOnlyConfig())
    weight, inner = model.weight, model.weight.qdata
    old = inner.clone()
    snapshot = Snapshot.take(model)
    for disturb in (lambda: inner.fill_(3), lambda: setattr(weight, "qdata", other.weight.qdata)):
        disturb()
        assert not same_bits(weight.qdata, old)
        snapshot.restore()
        assert model.weight is weight
        assert weight.qdata is inner
        assert same_bits(inner, old)


def test_write_bits_to_nan_and_minus_zero() -> None:
    old = torch.tensor([float("nan"), -0.0, 1.0])
    old.view(torch.int32)[0] += 7
    tensor = torch.tensor([float("nan"), 0.0, 1.0])
    write_bits(tensor, old)
    assert tensor.view(torch.int32).tolist() == old.view(torch.int32).tolist()
    assert tensor._version == 0
