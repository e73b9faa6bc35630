"""Ways to write to a tensor, and which of the usual signs show them: the second table.

Four signs are looked at, each by itself and on a model of its own: the version counter of the
tensor that was there before, the address of the data under its name, a dispatch mode that looks for
declared writes to its storage, and the bytes.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests import test_mutations as mutations
from tests.freezing.content import content, moved
from tests.test_mutations import COUNT, MEAN, VAR, WEIGHT, Net

COMPILED = "torch.compile, aot_eager"


class Way(NamedTuple):
    """A way to write, or something that looks like one.

    Attributes:
        group: what it belongs to.
        name: what is done.
        do: does it.
        watched: names of the tensors that are looked at.
        prepare: changes the model first.
    """

    group: str
    name: str
    do: Callable[[Net], Any]
    watched: tuple[str, ...] = (WEIGHT,)
    prepare: Callable[[Net], Any] = lambda net: None


class Signs(NamedTuple):
    """What was seen.

    Attributes:
        version: None where reading `_version` raises.
        pointer: the address moved.
        dispatch: None for compiled code; with a dispatch mode on, torch runs it without compiling.
        bytes: dtype, shape or bytes changed.
    """

    version: bool | None
    pointer: bool
    dispatch: bool | None
    bytes: bool


def to_weight(write: Callable[[nn.Parameter], Any]) -> Callable[[Net], Any]:
    return lambda net: write(net.weight)


def to_norm(write: Callable[[Any], Any]) -> Callable[[Net], Any]:
    return lambda net: write(net.backbone[1])


def stepped(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Callable[[Net], Any]:
    def run(net: Net) -> None:
        optimizer = make([p for p in net.parameters() if p.dim() == 2])  # Muon takes no others
        for _ in range(2):  # the first step of Rprop only takes a look
            mutations.write_gradients(net)
            optimizer.step()

    return run


def loaded(net: Net, assign: bool, plus: float) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state[WEIGHT] += plus
    net.load_state_dict(state, assign=assign)


def replaced(net: Net) -> None:
    net.backbone[0].weight = nn.Parameter(torch.ones(4, 4))


def born_in_inference_mode(net: Net) -> None:
    with torch.inference_mode():
        net.backbone[1].running_mean = torch.ones(4)


@torch.inference_mode()
def mean_in_inference_mode(net: Net) -> None:
    net.backbone[1].running_mean.add_(1)


def in_slices(net: Net) -> None:
    flat = torch.randn(20)
    net.backbone[0].weight = nn.Parameter(flat[:16].view(4, 4))
    net.backbone[0].bias = nn.Parameter(flat[16:])


def beside_the_bias(net: Net) -> None:
    net.weight.detach().add_(1)


def swapped(net: Net) -> None:
    torch.utils.swap_tensors(net.weight, nn.Parameter(torch.ones(4, 4)))


def by_functional_call(net: Net) -> None:
    others = {name: tensor * 2 for name, tensor in net.named_parameters()}
    torch.func.functional_call(net, others, (mutations.X,)).sum().backward()


def alone(run: Callable[[Net], Any]) -> Callable[[Net], Any]:
    def with_one_rank(net: Net) -> None:
        with mutations.one_rank():
            run(net.eval())

    return with_one_rank


def of_two_ranks(run: Callable[[Any, Tensor], Any]) -> Callable[[Net], None]:
    def both(net: Net) -> None:
        store = dist.HashStore()

        def rank(number: int, tensor: Tensor) -> None:
            run(dist.ProcessGroupGloo(store, number, 2), tensor).wait()

        other = threading.Thread(target=rank, args=(1, torch.ones(4, 4)))
        other.start()
        rank(0, net.weight.detach())
        other.join(timeout=30)

    return both


def compiled(run: Callable[[Net], Any], backend: str) -> Callable[[Net], None]:
    def call(net: Net) -> None:
        torch.compiler.reset()
        torch.compile(run, backend=backend)(net)

    return call


def mapped(net: Net) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(net.state_dict(), path)
        net.load_state_dict(load_file(path), assign=True)
        net.file = path.open("r+b")  # the mapping outlives the name


def edited(net: Net) -> None:
    data = net.file.read()
    net.file.seek(data.index(net.weight.detach().numpy().tobytes()))
    net.file.write(b"\x01\x02")
    net.file.close()


def ways() -> Iterator[Way]:
    yield from (Way("in place", n, to_weight(w)) for n, w in mutations.WRITES.items())
    yield Way(
        "in place", "inference tensor", mean_in_inference_mode, (MEAN,), born_in_inference_mode
    )
    yield from (Way("same bytes", n, to_weight(w)) for n, w in mutations.NO_CHANGES.items())
    yield Way(
        "same bytes", "write to the other slice", beside_the_bias, ("backbone.0.bias",), in_slices
    )
    yield Way("same bytes", "functional_call", by_functional_call)
    yield Way("same bytes", "equal load_state_dict", partial(loaded, assign=False, plus=0))
    yield from _modules()
    yield from (Way("optimizers", n, stepped(make)) for n, make in mutations.OPTIMIZERS.items())
    statistics = mutations.STATISTICS.items()
    yield from (Way("forward", n, to_norm(run), (MEAN, VAR)) for n, run in statistics)
    yield Way(
        "forward", "BatchNorm counter", lambda net: net.backbone[1].train()(mutations.X), (COUNT,)
    )
    yield Way(
        "forward",
        "Embedding(max_norm)",
        to_weight(lambda w: F.embedding(torch.tensor([0, 2]), w, max_norm=0.01)),
    )
    same = mutations.EQUAL_COLLECTIVES.items()
    yield from (Way("one rank", n, alone(run)) for n, run in same)
    both = mutations.COLLECTIVES.items()
    yield from (Way("two ranks", n, of_two_ranks(run)) for n, run in both)
    for name, (run, targets) in mutations.COMPILED.items():
        yield Way(COMPILED, name, compiled(run, "aot_eager"), tuple(sorted(targets)))
    yield Way("custom ops", "declared", lambda net: mutations.declared(net.weight.detach()))
    yield Way("custom ops", "undeclared", lambda net: mutations.undeclared(net.weight.detach()))
    yield Way("files", "mapped file edited", edited, prepare=mapped)


def _modules() -> Iterator[Way]:
    yield Way("modules", "load_state_dict", partial(loaded, assign=False, plus=1))
    yield Way("modules", "load_state_dict(assign=True)", partial(loaded, assign=True, plus=1))
    yield Way("modules", "module.weight = Parameter", replaced)
    yield Way("modules", "swap_tensors", swapped)
    yield Way("modules", "half()", lambda net: net.half())


class DeclaredWrites(TorchDispatchMode):
    """Collects the storages that operators declare to write to."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._note(kwargs.get(argument.name, args[i] if i < len(args) else None))
        return func(*args, **kwargs)

    def _note(self, value: Any) -> None:
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(tensor, Tensor):
                self.written.add(tensor.untyped_storage().data_ptr())


def fresh(way: Way) -> Net:
    torch.manual_seed(0)
    net = Net()
    way.prepare(net)
    return net


def named(net: Net, way: Way) -> dict[str, Tensor]:
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    return {name: tensors[name] for name in way.watched}


def signs(way: Way) -> Signs:
    return Signs(_version(way), _pointer(way), _dispatch(way), _bytes(way))


def _version(way: Way) -> bool | None:
    net = fresh(way)
    held = named(net, way)
    try:
        before = {name: tensor._version for name, tensor in held.items()}
    except RuntimeError:
        return None
    way.do(net)
    return any(tensor._version != before[name] for name, tensor in held.items())


def _pointer(way: Way) -> bool:
    net = fresh(way)
    before = {name: tensor.data_ptr() for name, tensor in named(net, way).items()}
    way.do(net)
    return any(t.data_ptr() != before[name] for name, t in named(net, way).items())


def _dispatch(way: Way) -> bool | None:
    if way.group == COMPILED:
        return None
    net = fresh(way)
    storages = {tensor.untyped_storage().data_ptr() for tensor in named(net, way).values()}
    with DeclaredWrites() as mode:
        way.do(net)
    return not storages.isdisjoint(mode.written)


def _bytes(way: Way) -> bool:
    net = fresh(way)
    before = content(net)
    way.do(net)
    return not set(way.watched).isdisjoint(moved(before, net))


class Line(NamedTuple):
    """Ways of one group that show the same signs."""

    group: str
    names: list[str]
    signs: Signs


@cache
def lines() -> list[Line]:
    """One line for each group and each set of signs, in the order of the ways."""
    found = []
    for group, members in groupby(ways(), key=lambda way: way.group):
        alike: dict[Signs, list[str]] = {}
        for way in members:
            alike.setdefault(signs(way), []).append(way.name)
        found += [Line(group, names, shown) for shown, names in alike.items()]
    return found
