"""Gradients of before are set aside: against plain backward calls, and bit for bit on failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from frostline._state import same_bits
from frostline.accumulation.gradients import set_aside
from tests.zoo import ZOO, fresh


def resnet() -> tuple[nn.Module, Callable[[], Tensor]]:
    entry = ZOO["resnet18"]
    model, batch = fresh(entry).eval(), entry.batch()
    return model, lambda: entry.loss(model, batch)


def grads(model: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in model.parameters()]


def copies(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.clone() for t in tensors]


def fail(
    net: nn.Module,
    backward: Callable[[], None],
    error: BaseException,
    others: Sequence[Tensor] = (),
) -> None:
    with set_aside(net, others):
        backward()
        raise error


def test_a_success_leaves_what_two_backward_calls_leave_in_the_same_objects() -> None:
    model, loss = resnet()
    loss().backward()
    model.get_parameter("fc.weight").grad = None
    before = grads(model)
    kept = copies(before)
    with set_aside(model):
        assert grads(model) == [None] * len(before)
        loss().backward()
        alone = copies(grads(model))
    after = grads(model)
    assert all(b is None or a is b for a, b in zip(after, before, strict=True))
    for total, old, new in zip(after, kept, alone, strict=True):
        assert total is not None
        assert new is not None
        assert torch.equal(total, new if old is None else old + new)


def test_a_failure_brings_back_the_objects_and_their_bits() -> None:
    model, loss = resnet()
    loss().backward()
    frozen = model.get_parameter("conv1.weight").requires_grad_(False)
    frozen.grad = None
    before = grads(model)
    kept = copies(before)

    def fails(grad: Tensor) -> None:
        raise ArithmeticError("half-way")

    handle = model.get_parameter("layer1.0.conv1.weight").register_hook(fails)
    with pytest.raises(ArithmeticError), set_aside(model):
        loss().backward()
    handle.remove()
    assert all(a is b for a, b in zip(grads(model), before, strict=True))
    for a, b in zip(before, kept, strict=True):
        assert a is b is None or (a is not None and b is not None and same_bits(a, b))


def test_an_interrupt_counts_as_a_failure() -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(KeyboardInterrupt):
        fail(net, lambda: net(torch.ones(1, 2)).sum().backward(), KeyboardInterrupt())
    assert net.weight.grad is None


@pytest.mark.parametrize("old", ["none", "sparse", "dense"])
@pytest.mark.parametrize("new", ["none", "sparse", "dense"])
def test_layouts_add_up_as_in_torch(old: str, new: str) -> None:
    def backward(net: nn.Embedding, layout: str, tokens: list[int]) -> None:
        net.sparse = layout == "sparse"
        if layout != "none":
            net(torch.tensor(tokens)).square().sum().backward()

    nets = [nn.Embedding(6, 2), nn.Embedding(6, 2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        backward(net, old, [1, 3])
    before = nets[0].weight.grad
    with set_aside(nets[0]):
        backward(nets[0], new, [3, 5])
    backward(nets[1], new, [3, 5])
    found, expected = nets[0].weight.grad, nets[1].weight.grad
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.layout is expected.layout
    assert torch.equal(found.to_dense(), expected.to_dense())
    if before is not None and before.layout is found.layout:
        assert found is before


def test_a_tied_tensor_gets_its_gradient_once() -> None:
    def net() -> nn.ModuleDict:
        torch.manual_seed(0)
        tied = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
        tied["head"].weight = tied["embed"].weight
        return tied

    def backward(tied: nn.ModuleDict) -> None:
        tied["head"](tied["embed"](torch.tensor([0, 2]))).square().sum().backward()

    once, plain = net(), net()
    backward(once)
    with set_aside(once):
        backward(once)
    backward(plain)
    backward(plain)
    assert torch.equal(*(n["embed"].weight.grad for n in (once, plain)))


def test_an_optimizer_that_steps_in_backward_may_take_the_gradient() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([net.weight], lr=0.5)

    def step(parameter: Tensor) -> None:
        optimizer.step()
        parameter.grad = None

    net.weight.register_post_accumulate_grad_hook(step)
    net.bias.grad = old = torch.ones(2)
    weight = net.weight.detach().clone()
    with set_aside(net):
        net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad is None
    assert torch.equal(net.weight, weight - 0.5)
    assert net.bias.grad is old
    assert torch.equal(old, torch.full((2,), 2.0))


def test_further_leaves_are_set_aside_too_and_what_is_no_leaf_is_not() -> None:
    net = nn.Linear(2, 1)
    temperature = torch.tensor(2.0, requires_grad=True)
    temperature.grad = old = torch.tensor(10.0)
    inner = temperature * 1
    with set_aside(net, [temperature, inner]):
        (net(torch.ones(1, 2)).detach().sum() * 0 + inner * 3).backward()
    assert temperature.grad is old
    assert float(old) == 13.0
    with pytest.raises(ValueError, match="stop"):
        fail(net, (temperature * 3).backward, ValueError("stop"), [temperature])
    assert temperature.grad is old
    assert float(old) == 13.0


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32])
def test_gradients_of_two_precisions_add_up_as_in_torch(first: torch.dtype) -> None:
    def backward(net: nn.Linear, dtype: torch.dtype) -> None:
        net.weight.grad_dtype = dtype
        net(torch.tensor([[1.0, 1 / 3]]).bfloat16()).sum().backward()

    second = torch.float32 if first is torch.bfloat16 else torch.bfloat16
    nets = [nn.Linear(2, 1, bias=False).bfloat16() for _ in range(2)]
    for net in nets:
        backward(net, first)
        net.weight.grad_dtype = None
    before = nets[0].weight.grad
    with set_aside(nets[0]):
        backward(nets[0], second)
        nets[0].weight.grad_dtype = None
    nets[1].weight.grad.add_(nets[0].weight.detach().new_tensor([[1.0, 1 / 3]]))
    assert nets[0].weight.grad is before
    assert before.dtype is first
    assert torch.equal(before, nets[1].weight.grad)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def in_buckets() -> tuple[nn.Module, Tensor, Callable[[], None]]:
    """A model whose weight has the gradient [1, 2], and a backward that makes [10, 20]."""
    net = DistributedDataParallel(nn.Linear(2, 1), gradient_as_bucket_view=True)
    for _ in range(3):  # the buckets are made anew after the first
        net.zero_grad()
        net(torch.tensor([[1.0, 2.0]])).sum().backward()
    old = net.module.weight.grad

    def backward() -> None:
        net(torch.tensor([[10.0, 20.0]])).sum().backward()
        assert net.module.weight.grad.data_ptr() == old.data_ptr()  # else nothing is shown

    return net, old, backward


@pytest.mark.usefixtures("one_rank")
def test_gradients_that_are_views_of_buckets_survive_what_is_written_there() -> None:
    net, old, backward = in_buckets()
    with set_aside(net):
        backward()
    assert net.module.weight.grad is old
    assert old.tolist() == [[11.0, 22.0]]
    net, old, backward = in_buckets()
    with pytest.raises(ValueError, match="stop"):
        fail(net, backward, ValueError("stop"))
    assert net.module.weight.grad is old
    assert old.tolist() == [[1.0, 2.0]]
