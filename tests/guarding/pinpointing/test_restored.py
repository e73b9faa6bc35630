"""What pinpointing touches comes back exactly, and it gets along with what else is there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.guarding.pinpointing.pinpointing_cases import net, pinpoint, touched, untraced, write

X = torch.ones(2, 4)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with untraced():
        before = touched()["stance"]
        yield
        assert touched()["stance"] == before
    torch._dynamo.reset()


def train(model: nn.Module, steps: int = 3) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()


# --- exactly as before -----------------------------------------------------------------------


def test_restored_after_an_exception_in_the_body() -> None:
    found, _ = pinpoint(net())
    before = touched()

    def body() -> None:
        found.start()
        try:
            raise KeyError
        finally:
            found.stop()

    with pytest.raises(KeyError):
        body()
    assert touched() == before


@pytest.mark.parametrize("failing", ["ranges", "changed"])
def test_restored_if_it_cannot_start(failing: str) -> None:
    found, memory = pinpoint(net())

    def fail(*args: object) -> None:
        raise ValueError("moved")

    setattr(memory, failing, fail)
    before = touched()
    with pytest.raises(ValueError, match="moved"):
        found.start()
    assert touched() == before
    delattr(memory, failing)
    found.start()
    found.stop()
    assert touched() == before


def test_a_look_that_fails_ends_it_and_not_the_users_line() -> None:
    model = net()
    found, memory = pinpoint(model)
    before = touched()
    found.start()

    def gone(names: object) -> list[str]:
        raise ReferenceError("the model is gone")

    memory.changed = gone  # type: ignore[method-assign]
    write(model)
    found.stop()
    assert touched() == before
    (note,) = found.notes
    assert "ReferenceError: the model is gone" in note


def test_twice_is_once() -> None:
    found, _ = pinpoint(net())
    before = touched()
    found.start()
    found.start()
    assert len(touched()["modes"]) == len(before["modes"]) + 1
    found.stop()
    found.stop()
    assert touched() == before


def test_again_and_again() -> None:
    model = net()
    found, _ = pinpoint(model)
    before = touched()
    for _ in range(3):
        found.start()
        write(model)
        found.stop()
        assert touched() == before
        write(model)
    assert len(found.culprits) == 3


def test_from_one_optimizer_hook_to_another() -> None:
    model = net()
    found, _ = pinpoint(model)
    steps: list[int] = []
    during = []

    def after_step(*args: object) -> None:
        steps.append(len(steps))
        if len(steps) == 1:
            found.start()
        elif len(steps) == 3:
            found.stop()
        during.append(len(touched()["modes"]))

    handle = register_optimizer_step_post_hook(after_step)
    before = touched()
    try:
        train(model, steps=4)
    finally:
        handle.remove()
    assert touched() == before
    assert during == [1, 1, 0, 0]
    assert {c.operation for c in found.culprits} >= {"aten.native_batch_norm"}
    # Two of the four steps lay between.
    (forward,) = {c.where for c in found.culprits if "norm.running_mean" in c.names}
    assert sum("norm.running_mean" in c.names for c in found.culprits) == 2
    assert forward.startswith("tests/guarding/pinpointing/test_restored.py:")


def test_training_is_bit_for_bit_the_same() -> None:
    states = []
    for watched in (False, True):
        model = net()
        found, _ = pinpoint(model)
        if watched:
            found.start()
        train(model)
        found.stop()
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_suspended_generator_keeps_nothing() -> None:
    found, _ = pinpoint(net())

    def batches() -> Iterator[int]:
        yield 1
        yield 2

    early = batches()
    next(early)
    found.start()
    late = batches()
    assert next(late) + next(early) == 3
    found.stop()
    assert late.gi_frame.f_trace is None  # type: ignore[attr-defined]
    assert early.gi_frame.f_trace is None  # type: ignore[attr-defined]


# --- other modes -----------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class CountingFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Counting, CountingFunctions, FlopCounterMode])
@pytest.mark.parametrize("order", ["inside", "outside", "start within", "stop within"])
def test_users_modes_stay_and_leave_as_usual(kind: Callable[[], Any], order: str) -> None:
    model = net()
    found, _ = pinpoint(model)
    before = touched()
    mode = FlopCounterMode(display=False) if kind is FlopCounterMode else kind()
    if order in ("inside", "stop within"):
        found.start()
    with mode:
        if order in ("outside", "start within"):
            found.start()
        write(model)
        if order in ("outside", "stop within"):
            found.stop()
    torch.ones(2).add_(1)
    found.stop()
    assert touched() == before
    assert [culprit.operation for culprit in found.culprits] == ["aten.add_"]


@pytest.mark.parametrize("kind", [Counting, CountingFunctions])
def test_looks_are_hidden_from_the_users_modes(kind: Callable[[], Any]) -> None:
    counts = []
    for watched in (False, True):
        model = net()
        found, _ = pinpoint(model)
        if watched:
            found.start()
        with kind() as mode:
            write(model)
            model.fc.bias.detach()
        found.stop()
        counts.append(mode.count)
    assert counts[0] == counts[1] > 0


def test_fake_tensors_and_export_work_meanwhile() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = net().eval()
    found, _ = pinpoint(model)
    found.start()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.ones(2, 4)).add_(1).shape == (2, 2)
    torch.export.export(model, (X,))
    torch.cond(torch.tensor(True), torch.sin, torch.cos, (torch.ones(2),))
    found.stop()
    assert found.culprits == []


def test_a_subclass_is_followed_to_what_it_holds() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    model = net()
    found, _ = pinpoint(model)
    found.start()
    TwoTensor(model.fc.weight.detach(), torch.zeros(4, 4)).add_(1)
    found.stop()
    culprit = found.culprit_of("fc.weight")
    assert culprit is not None
    assert culprit.operation == "aten.add_"


# --- other tracers ---------------------------------------------------------------------------


def test_a_tracer_that_is_there_stays_and_operators_are_still_named() -> None:
    model = net()
    found, _ = pinpoint(model)
    alias = model.fc.weight.detach().numpy()
    events: list[str] = []

    def debugger(frame: object, event: str, arg: object) -> None:
        events.append(event)

    sys.settrace(debugger)
    before = touched()
    found.start()
    assert sys.gettrace() is debugger
    write(model)
    alias[0, 0] = 7
    model.fc.weight.data.mul_(1)
    found.stop()
    assert touched() == before
    sys.settrace(None)
    assert events
    (note,) = found.notes
    assert note.startswith("lines are not traced: a debugger")
    # The multiplication by one is not blamed for what numpy did.
    assert [(c.names, c.operation) for c in found.culprits] == [
        (("fc.bias",), "aten.add_"),
        (("fc.weight",), "unseen"),
    ]


def test_a_tracer_set_meanwhile_stays() -> None:
    found, _ = pinpoint(net())

    def debugger(frame: object, event: str, arg: object) -> None: ...

    found.start()
    sys.settrace(debugger)
    threading.settrace(debugger)  # type: ignore[arg-type]
    found.stop()
    traces = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    assert traces == (debugger, debugger)
