"""Pinpointing over threads and forked processes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from frostline.guarding.pinpointing import frames
from tests.guarding.pinpointing.pinpointing_cases import net, pinpoint, touched, untraced, write


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with untraced():
        yield


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
    begun, ended = threading.Event(), []

    def other() -> None:
        begun.set()
        while not ended:
            pass

    found.start()
    model.fc.bias.detach().numpy().fill(3)
    assert found.notes == []
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    for value in range(50):
        model.fc.bias.detach().numpy().fill(value)
    ended.append(True)
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


def test_where_nothing_is_the_users_the_installed_program_is_named() -> None:
    source = "import sys\ndef main():\n    return found(sys._getframe())\n"
    space: dict[str, object] = {"found": frames.users}
    exec(compile(source, "/somewhere/site-packages/trainer/main.py", "exec"), space)
    with ThreadPoolExecutor(1) as pool:
        (frame,) = pool.submit(space["main"]).result()  # type: ignore[arg-type, misc]
    assert frame.f_code.co_name == "main"
    # Called by the user, the user's line is the answer.
    assert space["main"]()[0] is sys._getframe()  # type: ignore[operator]
