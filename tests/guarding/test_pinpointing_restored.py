"""What pinpointing touches comes back exactly, and it gets along with what else is there."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from frostline.guarding.pinpointing import Pinpoint
from tests.guarding.pinpointing_cases import Copies, net, pinpoint, touched, untraced

X = torch.ones(2, 4)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with untraced():
        before = touched()["stance"]
        yield
        assert touched()["stance"] == before
    torch._dynamo.reset()


def write(model: nn.Module) -> None:
    model.fc.bias.data.add_(1)


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
    assert forward.startswith("tests/guarding/test_pinpointing_restored.py:")


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


# --- other threads and processes -------------------------------------------------------------


def in_thread(action: Callable[[], object]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


def test_stopped_from_another_thread_it_is_off_and_goes_later() -> None:
    model = net()
    found, _ = pinpoint(model)
    before = touched()
    found.start()
    in_thread(found.stop)
    write(model)
    assert found.culprits == []
    found.stop()
    write(model)
    assert touched() == before


def test_a_thread_that_outlives_it_is_traced_no_more() -> None:
    model = net()
    found, memory = pinpoint(model)
    begun, ended, traces = threading.Event(), threading.Event(), []

    def quiet() -> None: ...

    def work() -> None:
        begun.set()
        ended.wait()
        quiet()
        traces.append(sys.gettrace())
        traces.append(sys._getframe().f_trace)

    found.start()
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    found.stop()
    looks = memory.looks
    ended.set()
    thread.join()
    assert traces == [None, None]
    assert memory.looks == looks


def test_writes_of_two_threads_in_turn_each_have_their_line() -> None:
    model = net()
    found, _ = pinpoint(model)

    def fill() -> None:
        model.fc.bias.detach().numpy().fill(3)

    found.start()
    with ThreadPoolExecutor(1) as pool: pool.submit(fill).result()  # fmt: skip # noqa: E701
    write(model)
    found.stop()
    assert [c.function.rpartition(".")[2] for c in found.culprits] == ["fill", "write"]


def test_threads_at_once_are_told_of() -> None:
    model = net()
    found, _ = pinpoint(model)
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        begun.set()
        ended.wait()

    found.start()
    model.fc.bias.detach().numpy().fill(3)
    assert found.notes == []
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    model.fc.bias.detach().numpy().fill(4)
    ended.set()
    thread.join()
    found.stop()
    (note,) = found.notes
    assert note.startswith("several threads")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_not_watched() -> None:
    model = net()
    found, memory = pinpoint(model)
    found.start()
    looks = memory.looks
    child = os.fork()
    if child == 0:
        write(model)
        # A worker that looked would do so on another process's memory.
        os._exit(len(found.culprits) + (sys.gettrace() is not None))
    _, status = os.waitpid(child, 0)
    found.stop()
    assert os.waitstatus_to_exitcode(status) == 0
    assert memory.looks > looks
    assert found.culprits == []


# --- the compiler ----------------------------------------------------------------------------


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("first", ["compiled before", "compiled meanwhile"])
def test_compilation_goes_on_afterwards(fullgraph: bool, first: str) -> None:
    counter = CompileCounter()
    model = net().eval()
    compiled = torch.compile(model, backend=counter, fullgraph=fullgraph, dynamic=False)
    if first == "compiled before":
        compiled(X)
    graphs = counter.frame_count
    found, _ = pinpoint(model)
    before = touched()
    found.start()
    compiled(X)
    compiled(torch.ones(5, 4))
    assert counter.frame_count == graphs
    found.stop()
    assert touched() == before
    for rows in (2, 3):
        compiled(torch.ones(rows, 4))
    assert counter.frame_count == 2
    torch.compile(net().eval(), backend=counter, fullgraph=fullgraph)(X)
    assert counter.frame_count == 3


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_under_a_stance_of_the_user_within(fullgraph: bool) -> None:
    """Ours is undone by it, so code is compiled under the mode; still nothing is lost."""
    counter = CompileCounter()
    found, _ = pinpoint(net())
    found.start()
    model = net().eval()
    with torch.compiler.set_stance("default"):
        torch.compile(model, backend=counter, fullgraph=fullgraph, dynamic=False)(X)
    assert touched()["stance"].stance == "force_eager"
    found.stop()
    assert counter.frame_count == 1
    other = torch.compile(net().eval(), backend=counter, fullgraph=fullgraph, dynamic=False)
    other(torch.ones(3, 4))
    assert counter.frame_count == 2


def test_a_stance_of_the_user_around_it_comes_back() -> None:
    with torch.compiler.set_stance("eager_on_recompile"):
        found, _ = pinpoint(net())
        found.start()
        assert touched()["stance"].stance == "force_eager"
        found.stop()
        assert touched()["stance"].stance == "eager_on_recompile"


def test_started_from_within_compiled_code() -> None:
    model = net()
    found, _ = pinpoint(model)

    @torch.compiler.disable
    def start() -> None:
        found.start()

    @torch.compile(backend="eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        start()
        return x * 2

    before = touched()
    step(X)
    assert found.notes == []
    write(model)
    found.stop()
    assert touched() == before
    assert [culprit.operation for culprit in found.culprits] == ["aten.add_"]


def test_nothing_is_compared_for_what_only_reads() -> None:
    model = net().eval()
    found, memory = pinpoint(model)
    found.start()
    model(X).sum().backward()
    found.stop()
    assert memory.asked == []


def test_nested_ranges_are_all_found() -> None:
    flat = torch.zeros(100)
    memory = Copies({"all": flat, "part": flat[10:20], "late": flat[50:]})
    found = Pinpoint(memory)
    found.start()
    flat[15].add_(1)
    flat[70].add_(1)
    found.stop()
    assert [set(culprit.names) for culprit in found.culprits] == [{"all", "part"}, {"all", "late"}]
