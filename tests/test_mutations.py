"""Every way in which PyTorch can write to a tensor, turned against a frozen part.

Version counters, data pointers and dispatch modes each miss some of these; a part compares bytes.
What the tests expect is read off the slow way: all bytes before, all bytes after.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import frostline as fl
from frostline.errors import FreezeError
from tests.freezing.content import content, moved
from tests.freezing.kinds import KINDS, build, step
from tests.zoo import live

WEIGHT, BIAS = "backbone.0.weight", "backbone.0.bias"
MEAN, VAR = "backbone.1.running_mean", "backbone.1.running_var"
COUNT = "backbone.1.num_batches_tracked"


class Net(nn.Module):
    """A linear layer and a norm that are frozen, and a head that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        live(self)

    @property
    def weight(self) -> nn.Parameter:
        weight: nn.Parameter = self.backbone[0].weight
        return weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out


def assert_named(net: nn.Module, part: fl.types.FrozenPart, run: Callable[[], Any]) -> set[str]:
    """Run it; the part must name what the bytes say, no more and no less."""
    before = content(net)
    assert part.changes() == []
    run()
    found = {c.name for c in part.changes() if c.severity == "drift"}
    assert found == set(moved(before, net)) & set(part.tensors)
    return found


# --- writes in place ---------------------------------------------------------------------------

Write = Callable[[nn.Parameter], Any]


def without_grad(write: Write) -> Write:
    def run(weight: nn.Parameter) -> None:
        with torch.no_grad():
            write(weight)

    return run


def in_inference_mode(weight: nn.Parameter) -> None:
    with torch.inference_mode():
        weight.add_(1)


def through_an_old_data_alias(weight: nn.Parameter) -> None:
    alias = weight.data
    weight.requires_grad_(False)
    alias.mul_(2)


def through_ctypes(weight: nn.Parameter) -> None:
    ctypes.cast(weight.data_ptr(), ctypes.POINTER(ctypes.c_float))[3] = 7.0


def through_the_storage(weight: nn.Parameter) -> None:
    weight.untyped_storage()[5] = 77


def copy_of_storage(weight: nn.Parameter) -> None:
    other = torch.ones_like(weight).untyped_storage()
    weight.untyped_storage().copy_(other)


def rebind_data(weight: nn.Parameter) -> None:
    weight.data = torch.ones_like(weight)


def set_to_another(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.set_(torch.ones(4, 4))


WRITES: dict[str, Write] = {
    "no_grad add_": without_grad(lambda w: w.add_(1)),
    "item assignment": without_grad(lambda w: w.__setitem__(0, 5.0)),
    "zero_": without_grad(lambda w: w.zero_()),
    "out=": without_grad(lambda w: torch.add(w, 1, out=w)),
    "nn.init": lambda w: nn.init.normal_(w),
    "_foreach_": without_grad(lambda w: torch._foreach_add_([w], 1.0)),
    "view": without_grad(lambda w: w.view(-1)[3:5].mul_(2)),
    "detach": lambda w: w.detach().add_(1),
    "inference_mode": in_inference_mode,
    ".data add_": lambda w: w.data.add_(1),
    ".data item": lambda w: w.data.__setitem__(0, 5.0),
    ".data copy_": lambda w: w.data.copy_(torch.ones(4, 4)),
    ".data alias from before": through_an_old_data_alias,
    "out=.data": lambda w: torch.add(w.detach(), 1, out=w.data),
    "numpy": lambda w: np.multiply(w.detach().numpy(), 2, out=w.detach().numpy()),
    "ctypes": through_ctypes,
    "dlpack": lambda w: torch.from_dlpack(w.detach()).add_(1),
    "storage fill_": lambda w: w.untyped_storage().fill_(1),
    "storage copy_": copy_of_storage,
    "storage item": through_the_storage,
    ".data = new": rebind_data,
    "set_": set_to_another,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_named(write: Write) -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    assert assert_named(net, part, lambda: write(net.weight)) == {WEIGHT}
    (change,) = part.changes()
    assert change.kind == "value"
    assert change.changed_elements


NO_CHANGES: dict[str, Write] = {
    "adds 0": without_grad(lambda w: w.add_(0)),
    "copies itself": without_grad(lambda w: w.copy_(w.clone())),
    "writes and writes back": without_grad(lambda w: w.neg_().neg_()),
    ".data = equal": lambda w: setattr(w, "data", w.detach().clone()),
    "share_memory_": lambda w: w.share_memory_(),
    "requires_grad off again": lambda w: w.requires_grad_(True).requires_grad_(False),
}


@pytest.mark.parametrize("write", NO_CHANGES.values(), ids=NO_CHANGES)
def test_equal_bytes_are_silent(write: Write) -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    write(net.weight)
    assert part.changes() == []


def test_a_tensor_born_in_inference_mode_is_sealed_and_named() -> None:
    net = Net()
    with torch.inference_mode():
        net.backbone[1].running_mean = torch.ones(4)
    part = fl.freeze(net, "backbone")

    def write() -> None:
        with torch.inference_mode():
            net.backbone[1].running_mean.add_(1)

    assert assert_named(net, part, write) == {MEAN}


def test_of_slices_of_one_flat_tensor_only_the_written_one_is_named() -> None:
    net = Net()
    flat = torch.randn(20)
    net.backbone[0].weight = nn.Parameter(flat[:16].view(4, 4))
    net.backbone[0].bias = nn.Parameter(flat[16:])
    part = fl.freeze(net, "backbone")
    versions = net.backbone[0].bias._version
    assert assert_named(net, part, lambda: flat[:4].add_(1)) == {WEIGHT}
    assert net.backbone[0].bias._version == versions + 1  # a counter would accuse the bias


def test_swap_tensors_is_refused_by_torch() -> None:
    """A part refers to its tensors weakly, and torch swaps nothing that is referred to so."""
    net = Net()
    part = fl.freeze(net, "backbone")
    other = nn.Parameter(torch.ones(4, 4), requires_grad=False)
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(net.weight, other)
    assert part.changes() == []


# --- modules -----------------------------------------------------------------------------------


def test_vector_to_parameters() -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    vector = parameters_to_vector(net.backbone.parameters()) * 2
    found = assert_named(net, part, lambda: vector_to_parameters(vector, net.backbone.parameters()))
    assert found == {n for n, _ in net.named_parameters() if n.startswith("backbone")}


def test_half_is_a_cast() -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    net.half()
    assert {c.kind for c in part.changes()} == {"cast"}
    assert part.ok


@pytest.mark.parametrize("equal", [False, True], ids=["other", "equal"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_load_state_dict(assign: bool, equal: bool) -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    state = {k: v.clone() for k, v in net.state_dict().items()}
    if not equal:
        state[WEIGHT] += 1
    found = assert_named(net, part, lambda: net.load_state_dict(state, assign=assign))
    assert found == (set() if equal else {WEIGHT})
    assert part.ok == equal
    assert not net.weight.requires_grad


def test_another_parameter_in_its_place() -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    net.backbone[0].weight = nn.Parameter(torch.ones(4, 4))
    assert {(c.name, c.kind) for c in part.changes()} == {
        (WEIGHT, "value"),
        (WEIGHT, "requires_grad"),
    }


def test_functional_call_is_silent() -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    others = {name: t * 2 for name, t in net.named_parameters()}
    torch.func.functional_call(net.train(), others, (X,)).sum().backward()
    assert part.changes() == []


# --- optimizers --------------------------------------------------------------------------------

sgd, adam, adamw = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD": partial(sgd, lr=0.1, momentum=0.9, foreach=False),
    "SGD foreach": partial(sgd, lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": partial(sgd, lr=0.1, momentum=0.9, fused=True),
    "Adam": partial(adam, lr=0.1, foreach=False),
    "Adam foreach": partial(adam, lr=0.1, foreach=True),
    "Adam fused": partial(adam, lr=0.1, fused=True),
    "AdamW": partial(adamw, lr=0.1, foreach=False),
    "AdamW foreach": partial(adamw, lr=0.1, foreach=True),
    "AdamW fused": partial(adamw, lr=0.1, fused=True),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.1, foreach=False),
    "Adagrad fused": partial(torch.optim.Adagrad, lr=0.1, fused=True),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.1),
    "NAdam": partial(torch.optim.NAdam, lr=0.1),
    "RAdam": partial(torch.optim.RAdam, lr=0.1),
    "Adamax": partial(torch.optim.Adamax, lr=0.1),
    "Adadelta": partial(torch.optim.Adadelta, lr=0.1),
    "ASGD": partial(torch.optim.ASGD, lr=0.1),
    "Rprop": partial(torch.optim.Rprop, lr=0.1),
    "Adafactor": partial(torch.optim.Adafactor, lr=0.1),
    "Muon": partial(torch.optim.Muon, lr=0.1, weight_decay=0.1),
}


def _matrices(net: nn.Module) -> list[nn.Parameter]:
    """Muon takes matrices only."""
    return [p for p in net.parameters() if p.dim() == 2]


def write_gradients(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_is_held_off(make: Callable[[list[nn.Parameter]], Optimizer]) -> None:
    net = Net()
    optimizer = make(_matrices(net))
    write_gradients(net)
    part = fl.freeze(net, "backbone")
    before = content(net)
    for _ in range(2):
        write_gradients(net)
        optimizer.step()
    assert moved(before, net) == ["head.weight"]
    assert part.changes() == []


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_an_optimizer_wrote_is_named(make: Callable[[list[nn.Parameter]], Optimizer]) -> None:
    """A step hook of the user's own comes after ours, and writes the gradients again."""
    net = Net()
    optimizer = make(_matrices(net))
    part = fl.freeze(net, "backbone")

    def steps() -> None:
        hook = optimizer.register_step_pre_hook(lambda *_: write_gradients(net))
        for _ in range(2):  # the first step of Rprop only takes a look
            optimizer.step()
        hook.remove()

    assert assert_named(net, part, steps) == {WEIGHT}


def test_lbfgs_is_refused_before_it_writes() -> None:
    net = Net()
    optimizer = torch.optim.LBFGS(net.parameters())
    part = fl.freeze(net, "backbone")
    before = content(net)
    with pytest.raises(FreezeError, match="LBFGS writes to every parameter"):
        optimizer.step(lambda: net(torch.randn(6, 4)).sum())
    assert moved(before, net) == []
    assert part.ok


@pytest.mark.parametrize("lerp", [True, False], ids=["lerp", "multiply and add"])
def test_an_average_of_a_constant(lerp: bool) -> None:
    """The copy of a frozen model owns its part; the usual formula moves it by rounding."""
    net = Net()
    fl.freeze(net)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=False)
    (part,) = fl.parts(average)

    def update() -> None:
        for _ in range(20):
            average.update_parameters(net) if lerp else _average_by_hand(average.module, net)

    found = assert_named(average.module, part, update)
    assert bool(found) != lerp


def _average_by_hand(average: nn.Module, net: nn.Module) -> None:
    new = net.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value *= 0.999
            value += (1 - 0.999) * new[name]


# --- forwards that write -----------------------------------------------------------------------

X = torch.linspace(-2, 3, 24).view(6, 4)


def batch_norm(norm: nn.BatchNorm1d) -> None:
    F.batch_norm(X, norm.running_mean, norm.running_var, training=True)


def batch_norm_without_grad(norm: nn.BatchNorm1d) -> None:
    with torch.no_grad():
        batch_norm(norm)


def legit(norm: nn.BatchNorm1d) -> None:
    mean, var = norm.running_mean, norm.running_var
    torch.ops.aten._native_batch_norm_legit(X, None, None, mean, var, True, 0.1, 1e-5)


def with_update(norm: nn.BatchNorm1d) -> None:
    mean, var = norm.running_mean, norm.running_var
    torch.ops.aten._batch_norm_with_update(X, None, None, mean, var, 0.1, 1e-5)


def instance_norm(norm: nn.BatchNorm1d) -> None:
    x = X.view(2, 4, 3)
    F.instance_norm(x, norm.running_mean, norm.running_var, use_input_stats=True)


STATISTICS = {
    "batch_norm": batch_norm,
    "batch_norm under no_grad": batch_norm_without_grad,
    "_native_batch_norm_legit": legit,
    "_batch_norm_with_update": with_update,
    "instance_norm": instance_norm,
}


@pytest.mark.parametrize("run", STATISTICS.values(), ids=STATISTICS)
def test_functions_that_write_statistics_are_named(run: Callable[[Any], None]) -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    assert assert_named(net, part, lambda: run(net.backbone[1])) == {MEAN, VAR}


def test_a_counter_is_named() -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    assert assert_named(net, part, lambda: net.backbone[1].num_batches_tracked.add_(1)) == {COUNT}


def test_an_embedding_function_that_renormalises_is_named() -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    run = partial(F.embedding, torch.tensor([0, 2]), net.weight, max_norm=0.01)
    assert assert_named(net, part, run) == {WEIGHT}


WRITERS = [
    "BatchNorm1d",
    "InstanceNorm1d, tracking",
    "Embedding(max_norm)",
    "spectral_norm",
    "spectral_norm, old",
    "FakeQuantize",
]


@pytest.mark.parametrize("kind", WRITERS)
def test_modules_that_write_are_held(kind: str) -> None:
    net, x = build(kind), KINDS[kind].inputs()
    part = fl.freeze(net, "part")
    assert assert_named(net, part, lambda: step(net.train(), x)) == set()


# --- other processes, other languages ----------------------------------------------------------


@contextmanager
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def ddp(net: nn.Module) -> None:
    wrapped = DistributedDataParallel(net)
    for _ in range(2):
        wrapped(X).sum().backward()


EQUAL_COLLECTIVES: dict[str, Callable[[Net], Any]] = {
    "all_reduce": lambda net: dist.all_reduce(net.weight.data),
    "broadcast": lambda net: dist.broadcast(net.weight.data, 0),
    "reduce": lambda net: dist.reduce(net.weight.data, 0),
    "_broadcast_coalesced": lambda net: dist._broadcast_coalesced(
        dist.group.WORLD, [net.weight.detach()], 1 << 20, 0
    ),
    "all_gather_single": lambda net: dist.all_gather_single(
        net.weight.detach(), net.weight.detach().clone()
    ),
    "DDP with buffer broadcast": ddp,
}


@pytest.mark.parametrize("run", EQUAL_COLLECTIVES.values(), ids=EQUAL_COLLECTIVES)
def test_collectives_that_bring_equal_bytes_are_silent(run: Callable[[Net], Any]) -> None:
    net = Net().eval()
    part = fl.freeze(net, "backbone")
    with one_rank():
        run(net)
    assert part.changes() == []


def broadcast(group: Any, tensor: Tensor) -> Any:
    options = dist.BroadcastOptions()
    options.rootRank = 1
    return group.broadcast([tensor], options)


def reduce(group: Any, tensor: Tensor) -> Any:
    options = dist.ReduceOptions()
    options.rootRank = 0
    return group.reduce([tensor], options)


COLLECTIVES = {
    "all_reduce": lambda group, tensor: group.allreduce([tensor]),
    "broadcast": broadcast,
    "reduce": reduce,
}


@pytest.mark.parametrize("run", COLLECTIVES.values(), ids=COLLECTIVES)
def test_collectives_of_two_ranks_are_named(run: Callable[[Any, Tensor], Any]) -> None:
    net, store = Net(), dist.HashStore()
    part = fl.freeze(net, "backbone")

    def rank(number: int, tensor: Tensor) -> None:
        group = dist.ProcessGroupGloo(store, number, 2)
        run(group, tensor).wait()

    def both() -> None:
        other = threading.Thread(target=rank, args=(1, torch.ones(4, 4)))
        other.start()
        rank(0, net.weight.detach())
        other.join(timeout=30)

    assert assert_named(net, part, both) == {WEIGHT}


@torch.library.custom_op("frostline_tests::declared", mutates_args={"weight"})
def declared(weight: Tensor) -> None:
    weight.numpy()[0] = 3.0


@torch.library.custom_op("frostline_tests::undeclared", mutates_args=())
def undeclared(weight: Tensor) -> Tensor:
    weight.numpy()[0] = 3.0
    return weight.clone()


@pytest.mark.parametrize("op", [declared, undeclared], ids=["declared", "undeclared"])
def test_a_custom_op(op: Callable[[Tensor], Any]) -> None:
    net = Net()
    part = fl.freeze(net, "backbone")
    assert assert_named(net, part, lambda: op(net.weight.detach())) == {WEIGHT}


COMPILED: dict[str, tuple[Callable[[Net], Any], set[str]]] = {
    "buffer": (lambda net: net.backbone[1].running_mean.add_(1), {MEAN}),
    "parameter": (without_grad(lambda net: net.weight.mul_(2)), {WEIGHT}),
    ".data": (lambda net: net.weight.data.add_(1), {WEIGHT}),
    "statistics": (lambda net: batch_norm(net.backbone[1]), {MEAN, VAR}),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("run", "expected"), COMPILED.values(), ids=COMPILED)
def test_compiled_writes(run: Callable[[Net], Any], expected: set[str], backend: str) -> None:
    torch.compiler.reset()
    net = Net()
    part = fl.freeze(net, "backbone")
    compiled = torch.compile(run, backend=backend)
    assert assert_named(net, part, lambda: compiled(net)) == expected


def test_a_file_edited_under_its_tensors(tmp_path: Path) -> None:
    """`load_file` maps the file; an edit in place reaches the weights without any call of torch."""
    net, path = Net(), tmp_path / "weights.safetensors"
    save_file(net.state_dict(), path)
    net.load_state_dict(load_file(path), assign=True)
    part = fl.freeze(net, "backbone")

    def edit() -> None:
        data = path.read_bytes()
        start = data.index(net.weight.detach().numpy().tobytes())
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"\x01\x02")

    assert assert_named(net, part, edit) == {WEIGHT}
