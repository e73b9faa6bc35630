"""What is compiled stays compiled: before, while and after pinpointing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.convert_frame import input_codes
from torch._dynamo.testing import CompileCounter

from tests.guarding.pinpointing.pinpointing_cases import net, pinpoint, touched, untraced, write

X = torch.ones(2, 4)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with untraced():
        before = touched()["stance"]
        yield
        assert touched()["stance"] == before
    torch._dynamo.reset()


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


def test_a_stance_set_meanwhile_stays() -> None:
    found, _ = pinpoint(net())
    found.start()
    stance = torch.compiler.set_stance("fail_on_recompile")
    found.stop()
    kept = touched()["stance"].stance
    stance.__exit__(None, None, None)
    torch.compiler.set_stance("default")
    assert kept == "fail_on_recompile"


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
    files = {code().co_filename for code in input_codes.seen if code()}
    assert __file__ in files
    assert not any("frostline/guarding/" in file for file in files)
    assert found.notes == []
    write(model)
    found.stop()
    assert touched() == before
    assert [culprit.operation for culprit in found.culprits] == ["aten.add_"]
