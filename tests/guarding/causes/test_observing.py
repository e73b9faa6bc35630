"""Observers: what they hear, that they are gone afterwards, and that nobody notices them."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from frostline.guarding.causes import observing

PLACES = {
    (nn.Module, "load_state_dict"),
    (nn.Module, "_apply"),
    (nn.Module, "apply"),
    (nn.Module, "state_dict"),
    (GradScaler, "step"),
}


class Ear:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def loaded(self, module: nn.Module, keys: Any, where: str) -> None:
        self.heard.append(("loaded", module, sorted(keys), where))

    def converted(self, module: nn.Module, where: str) -> None:
        self.heard.append(("converted", module, where))

    def applied(self, module: nn.Module, function: str, where: str) -> None:
        self.heard.append(("applied", module, function, where))

    def skipped(self, optimizer: Optimizer) -> None:
        self.heard.append(("skipped", optimizer))

    def saving(self, module: nn.Module) -> None:
        self.heard.append(("saving", module))


@contextmanager
def listening(ear: Ear | None = None) -> Iterator[Ear]:
    ear = ear or Ear()
    observing.listen(ear)
    try:
        yield ear
    finally:
        observing.unlisten(ear)


@pytest.fixture(autouse=True)
def all_is_as_it_was() -> Iterator[None]:
    before = {place: vars(place[0])[place[1]] for place in PLACES}
    yield
    after = {place: vars(place[0])[place[1]] for place in PLACES}
    assert all(after[place] is before[place] for place in PLACES)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.GRU(2, 2)))


def here() -> str:
    """The line before the one that asks."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"{__file__}:{frame.f_back.f_lineno - 1}"


def init(module: nn.Module, gain: float = 1.0) -> None:
    pass


class Init:
    def __call__(self, module: nn.Module) -> None:
        pass


def test_what_is_heard() -> None:
    model = net()
    state = model[0].state_dict()
    with listening() as ear:
        model[0].load_state_dict(state)
        loaded = here()
        model.double()
        cast = here()
        model.apply(init)
        applied = here()
        model.state_dict()
    assert ear.heard == [
        ("loaded", model[0], ["bias", "weight"], loaded),
        ("converted", model, cast),
        ("applied", model, "init", applied),
        ("saving", model),
    ]


@pytest.mark.parametrize(
    ("function", "name"), [(init, "init"), (partial(init, gain=2.0), "init"), (Init(), "Init")]
)
def test_names_of_functions(function: Any, name: str) -> None:
    with listening() as ear:
        net().apply(function)
    assert [heard[2] for heard in ear.heard] == [name]


def test_nothing_is_heard_before_and_after() -> None:
    ear = Ear()
    model = net()
    model.double()
    with listening(ear):
        pass
    model.float()
    model.state_dict()
    assert ear.heard == []


def test_each_listener_hears_until_it_goes() -> None:
    model, first, second = net(), Ear(), Ear()
    with listening(first):
        with listening(second):
            model.double()
        model.float()
    assert (len(first.heard), len(second.heard)) == (2, 1)


def test_a_load_that_raises_was_heard() -> None:
    """What fits is loaded before the error."""
    model = nn.Linear(2, 2)
    with listening() as ear, pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**model.state_dict(), "more": torch.ones(1)})
    assert [heard[2] for heard in ear.heard if heard[0] == "loaded"] == [["bias", "more", "weight"]]


def test_loads_carry_a_few_values() -> None:
    heard: list[Any] = []

    class Values(Ear):
        def loaded(self, module: nn.Module, keys: Any, where: str) -> None:
            heard.append(keys)

    model = nn.Linear(40, 10)
    state = {"weight": torch.arange(400.0).view(10, 40), "bias": torch.ones(10)}
    with listening(Values()):
        model.load_state_dict(state)
    assert {name: value.numel() for name, value in heard[0].items()} == {"weight": 16, "bias": 10}
    assert heard[0]["weight"][[0, -1]].tolist() == [0.0, 399.0]


def test_who_raises_at_saving_stops_the_save_and_hears_the_next() -> None:
    class Refuses(Ear):
        def saving(self, module: nn.Module) -> None:
            super().saving(module)
            raise ValueError("changed")

    model = net()
    with listening(Refuses()) as ear:
        for _ in range(2):
            with pytest.raises(ValueError, match="changed"):
                model.state_dict()
    assert ear.heard == [("saving", model)] * 2


def _overflow(optimizer: Optimizer, p: nn.Parameter, grad: float) -> None:
    scaler = GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))
    p.grad = torch.full_like(p, grad)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize(
    ("grad", "fused", "told"),
    [
        (1.0, False, False),
        (float("inf"), False, True),
        (float("nan"), False, True),
        (1.0, True, False),
        (float("inf"), True, False),  # the optimizer is called, and its hooks tell of that
    ],
)
def test_skipped_steps(grad: float, fused: bool, told: bool) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1, fused=fused)
    with listening() as ear:
        _overflow(optimizer, p, grad)
    assert ear.heard == ([("skipped", optimizer)] if told else [])


def test_a_scaler_that_is_off_skips_nothing() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.full_like(p, float("inf"))
    with listening() as ear:
        GradScaler("cpu", enabled=False).step(torch.optim.SGD([p], lr=0.1))
    assert ear.heard == []


def test_signatures_and_names_stay() -> None:
    before = {place: inspect.signature(vars(place[0])[place[1]]) for place in PLACES}
    with listening():
        for cls, name in PLACES:
            method = vars(cls)[name]
            assert inspect.signature(method) == before[(cls, name)]
            assert method.__qualname__ == f"{cls.__qualname__}.{name}"


def test_nothing_hangs_on_modules() -> None:
    model = net()
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    with listening():
        assert {name: vars(m) for name, m in model.named_modules()} == before
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert torch.equal(other[0].weight, model[0].weight)


def test_somebody_who_patched_on_top_stays() -> None:
    """Ours lies below theirs and lets every call pass; ours on top of theirs tells once."""
    original = vars(nn.Module)["apply"]
    ear = Ear()
    observing.listen(ear)
    ours = vars(nn.Module)["apply"]
    calls: list[nn.Module] = []

    def theirs(self: nn.Module, fn: Any) -> Any:
        calls.append(self)
        return ours(self, fn)

    nn.Module.apply = theirs  # type: ignore[method-assign]
    try:
        model = nn.Linear(2, 2)
        model.apply(init)
        observing.unlisten(ear)
        assert vars(nn.Module)["apply"] is theirs
        model.apply(init)
        assert [heard[0] for heard in ear.heard] == ["applied"]
        with listening() as again:
            model.apply(init)
        assert [heard[0] for heard in again.heard] == ["applied"]
        assert vars(nn.Module)["apply"] is theirs
        assert len(calls) == 3
    finally:
        nn.Module.apply = original  # type: ignore[method-assign]


def test_threads_come_and_go() -> None:
    """Many at once: each hears its own calls, and the last one takes everything back."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                model = nn.Linear(1, 1)
                with listening() as ear:
                    model.double()
                assert sum(heard[1] is model for heard in ear.heard) == 1
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_forked_child_hears_nothing_and_has_torchs_own() -> None:
    original = vars(nn.Module)["_apply"]
    with listening() as ear:
        child = os.fork()
        if child == 0:
            nn.Linear(1, 1).double()
            clean = not ear.heard and vars(nn.Module)["_apply"] is original
            os._exit(0 if clean else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        nn.Linear(1, 1).double()
        assert len(ear.heard) == 1


class Applies(nn.Module):
    """Calls what is observed from inside its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * len(self.inner.state_dict())


def count_compiles(counted: list[Any]) -> Any:
    def backend(graph: Any, inputs: Any) -> Any:
        counted.append(graph)
        return graph.forward

    return backend


def test_compiled_code_is_not_compiled_again() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []
    compiled = torch.compile(nn.Linear(2, 2), backend=count_compiles(graphs), fullgraph=True)
    x = torch.ones(1, 2)
    expected = compiled(x)
    with listening():
        assert torch.equal(compiled(x), expected)
    assert torch.equal(compiled(x), expected)
    assert len(graphs) == 1


def test_code_that_calls_them_compiles_whole_and_only_once_more() -> None:
    """The compiler guards on the very function; back without listeners the first graph fits."""
    torch._dynamo.reset()
    graphs: list[Any] = []
    compiled = torch.compile(Applies(), backend=count_compiles(graphs), fullgraph=True)
    x = torch.ones(1, 2)
    expected = compiled(x)
    with listening() as ear:
        assert torch.equal(compiled(x), expected)
    assert torch.equal(compiled(x), expected)
    assert (len(graphs), ear.heard) == (2, [])


def test_the_fast_path_of_transformers_stays() -> None:
    """A hook on or below the encoder would switch it off."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    x = torch.ones(1, 3, 8)
    called: list[str] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.name())
            return function(*args, **(kwargs or {}))

    with listening(), torch.no_grad(), Calls():
        encoder(x)
    assert "aten::_transformer_encoder_layer_fwd" in called
