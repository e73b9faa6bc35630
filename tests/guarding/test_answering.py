"""Frozen bytes come back bit for bit, whatever was done, and nobody else's bytes change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline._state import same_bits
from frostline.guarding.answering import drop_optimizer_state, put_back
from frostline.guarding.engine import Engine
from frostline.guarding.target import resolve


class Net(nn.Module):
    """A frozen body, two of its tensors tied, and a head that goes on training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.body[2].weight = self.body[0].weight
        self.body.register_buffer("expanded", torch.ones(1).expand(3))
        self.body.scale = torch.full((2,), 3.0)
        self.head = nn.Linear(4, 4)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def in_place(net: Net) -> None:
    with torch.no_grad():
        net.body[0].weight[1, 2] = float("nan")


def through_data(net: Net) -> None:
    net.body[0].bias.data.neg_()


def minus_zero(net: Net) -> None:
    net.body[1].running_mean.neg_()


def through_numpy(net: Net) -> None:
    net.body[0].weight.detach().numpy()[:] = 7


def rebound(net: Net) -> None:
    net.body[0].weight.data = torch.randn(4, 4)


def rebound_to_the_head(net: Net) -> None:
    net.body[0].weight.data = net.head.weight.data


def cast(net: Net) -> None:
    net.body.half()


def resized(net: Net) -> None:
    net.body[1].running_var.resize_(2)


def set_elsewhere(net: Net) -> None:
    with torch.no_grad():
        net.body[0].bias.set_(torch.ones(9))


def swapped(net: Net) -> None:
    torch.utils.swap_tensors(net.body[0].bias, nn.Parameter(torch.ones(4)))


def replaced(net: Net) -> None:
    net.body[0].bias = nn.Parameter(torch.ones(4))


def replaced_at_both_places(net: Net) -> None:
    net.body[0].weight = net.body[2].weight = nn.Parameter(torch.ones(4, 4))


def replaced_by_one_of_the_head(net: Net) -> None:
    net.body[0].bias = net.head.bias


def replaced_buffer(net: Net) -> None:
    net.body[1].running_mean = torch.ones(4)


def expanded(net: Net) -> None:
    net.body.expanded[:1].fill_(5)


def plain_attribute(net: Net) -> None:
    net.body.scale.fill_(8)


WRITES: list[Callable[[Net], None]] = [
    in_place,
    through_data,
    minus_zero,
    through_numpy,
    rebound,
    rebound_to_the_head,
    cast,
    resized,
    set_elsewhere,
    swapped,
    replaced,
    replaced_at_both_places,
    replaced_by_one_of_the_head,
    replaced_buffer,
    expanded,
    plain_attribute,
]


def contents(net: Net) -> dict[str, Tensor]:
    return {
        **{k: v for k, v in net.state_dict().items() if not k.startswith("head")},
        "scale": net.body.scale,
        "expanded": net.body.expanded.clone(),
    }


def head(net: Net) -> list[Tensor]:
    return [p.detach().clone() for p in net.head.parameters()]


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [k for k in a if _form(a[k]) != _form(b[k]) or not same_bits(a[k], b[k])]


def _form(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


@pytest.fixture
def net() -> Net:
    net = Net()
    with torch.no_grad():
        net.body[1].running_var.uniform_(0.5, 2)
    return net


def watch(net: Net) -> Engine:
    return Engine(resolve(net, "body"), overhead=0.0, proof="content", keep_copies=True)


def answer(engine: Engine) -> None:
    suspects = engine.full_check()
    assert suspects
    assert all(put_back(suspect) for suspect in suspects)
    engine.restored(suspects)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_the_bytes_come_back_and_the_head_is_left_alone(
    write: Callable[[Net], None], net: Net
) -> None:
    engine = watch(net)
    before = {k: v.clone() for k, v in contents(net).items()}
    heads, objects = head(net), list(net.head.parameters())
    for _ in range(2):
        write(net)
        assert differing(contents(net), before)
        answer(engine)
        assert differing(contents(net), before) == []
        assert engine.full_check() == []
    assert all(same_bits(a, b) for a, b in zip(heads, head(net), strict=True))
    assert all(a is b for a, b in zip(objects, net.head.parameters(), strict=True))
    assert all(p.requires_grad for p in objects)
    assert net.body[0].weight is net.body[2].weight
    # From here on the head trains alone.
    with torch.no_grad():
        [p.add_(1) for p in net.head.parameters()]
    assert differing(contents(net), before) == []


def test_memory_that_is_its_own_is_written_in_place(net: Net) -> None:
    engine, weight = watch(net), net.body[0].weight
    alias, row, address = weight.detach().numpy(), weight[1], weight.data_ptr()
    old = alias.copy()
    alias[:] = 0
    answer(engine)
    assert weight.data_ptr() == address
    assert (alias == old).all()
    assert (row.numpy() == old[1]).all()


def test_versions_stay_so_that_backward_still_runs(net: Net) -> None:
    engine, x = watch(net), torch.randn(5, 4, requires_grad=True)
    loss = net.eval()(x).sum()
    versions = [p._version for p in net.body.parameters()]
    net.body[0].weight.data.mul_(3)
    answer(engine)
    assert [p._version for p in net.body.parameters()] == versions
    loss.backward()
    grad = x.grad.clone()
    x.grad = None
    net(x).sum().backward()
    assert same_bits(grad, x.grad)


def test_without_touching_the_version_backward_would_refuse(net: Net) -> None:
    """The control of the test above: an ordinary copy is one that autograd sees."""
    x = torch.randn(5, 4, requires_grad=True)
    loss = net.eval()(x).sum()
    with torch.no_grad():
        net.body[0].weight.copy_(net.body[0].weight.clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_flag_is_put_back(net: Net) -> None:
    fl.freeze(net, "body")
    engine = watch(net)
    net.body[0].bias.requires_grad_(True)
    answer(engine)
    assert not net.body[0].bias.requires_grad


def test_the_flag_of_a_tensor_that_nobody_froze_is_left_alone(net: Net) -> None:
    engine = Engine(resolve(net, "head"), overhead=0.0, proof="content", keep_copies=True)
    old = net.head.weight.detach().clone()
    net.head.weight = nn.Parameter(torch.ones(4, 4))
    answer(engine)
    assert net.head.weight.requires_grad
    assert same_bits(net.head.weight, old)


def test_what_is_missing_cannot_be_put_back(net: Net) -> None:
    engine = watch(net)
    del net.body[0].bias
    (suspect,) = engine.full_check()
    assert not put_back(suspect)


def test_without_a_copy_it_says_so(net: Net) -> None:
    engine = watch(net)
    in_place(net)
    (suspect,) = engine.full_check()
    suspect.reference.old.copy = None
    with pytest.raises(ValueError, match=r"^body\.0\.weight: its old bytes were not kept"):
        put_back(suspect)


def test_inference_tensors() -> None:
    with torch.inference_mode():
        net = nn.Linear(3, 3).requires_grad_(False)
    engine = Engine(resolve(net), overhead=0.0, proof="content", keep_copies=True)
    old = net.weight.tolist()
    with torch.inference_mode():
        net.weight.fill_(2)
    answer(engine)
    assert net.weight.tolist() == old


def _fill(net: nn.Linear, other: nn.Linear) -> None:
    net.weight.qdata.fill_(3)


def _rebind_inside(net: nn.Linear, other: nn.Linear) -> None:
    net.weight.qdata = other.weight.qdata


def _replace(net: nn.Linear, other: nn.Linear) -> None:
    net.weight = other.weight


@pytest.mark.parametrize("write", [_fill, _rebind_inside, _replace])
def test_a_wrapper_subclass(write: Callable[[nn.Linear, nn.Linear], None]) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    net, other = nn.Linear(8, 8), nn.Linear(8, 8)
    for module in (net, other):
        quantize_(module.requires_grad_(False), Int8WeightOnlyConfig())
    engine = Engine(resolve(net), overhead=0.0, proof="content", keep_copies=True)
    old, theirs = net.weight.qdata.clone(), other.weight.qdata.clone()
    x = torch.randn(2, 8)
    expected = net(x)
    for _ in range(2):
        write(net, other)
        assert not torch.equal(net(x), expected)
        answer(engine)
        assert torch.equal(net.weight.qdata, old)
        assert torch.equal(net(x), expected)
        assert torch.equal(other.weight.qdata, theirs)


def _trained(make: Callable[..., torch.optim.Optimizer]) -> tuple[Net, torch.optim.Optimizer]:
    net = Net().requires_grad_(True)
    optimizer = make(net.parameters())

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = net(torch.randn(6, 4)).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return net, optimizer


def test_state_of_frozen_tensors_goes_and_the_rest_stays() -> None:
    net, optimizer = _trained(lambda p: torch.optim.AdamW(p, lr=0.1))
    frozen, rest = [*net.body.parameters()], [*net.head.parameters()]
    kept = [optimizer.state[p]["exp_avg"] for p in rest]
    assert drop_optimizer_state([optimizer], frozen) == ["AdamW: step, exp_avg, exp_avg_sq"]
    assert set(optimizer.state) == set(rest)
    assert all(optimizer.state[p]["exp_avg"] is k for p, k in zip(rest, kept, strict=True))
    assert drop_optimizer_state([optimizer], frozen) == []
    assert len(optimizer.param_groups[0]["params"]) == len(frozen) + len(rest)


def test_the_one_state_of_lbfgs_is_left_alone() -> None:
    net, optimizer = _trained(lambda p: torch.optim.LBFGS(p, max_iter=2))
    assert drop_optimizer_state([optimizer], [*net.body.parameters()]) == []
    assert optimizer.state
