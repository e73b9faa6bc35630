"""Models are found without being handed in, before they train, and nothing else changes."""

from __future__ import annotations

import copy
import gc
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

from frostline.guarding.scripts import discovering, global_hook, roots
from frostline.guarding.scripts.discovering import Discovery, StepsDone
from frostline.guarding.scripts.merging import Followed


@pytest.fixture(autouse=True)
def _no_hook_is_left() -> Iterator[None]:
    tables = [name for name in vars(torch_module) if name.startswith("_global_")]
    asked = torch_module._has_any_global_hook
    yield
    for name in tables:
        assert not getattr(torch_module, name), name
    assert torch_module._has_any_global_hook is asked
    assert not global_hook._hooks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)
        self.backbone.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def _train(call: Any, parameters: Any, steps: int = 2) -> None:
    optimizer = SGD([p for p in parameters if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        call(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def _moved(found: list[Followed]) -> dict[str, list[str]]:
    return {f.model: sorted(c.name for c in f.report.drift) for f in found if f.report is not None}


NORM = [f"backbone.1.{name}" for name in ("num_batches_tracked", "running_mean", "running_var")]


class Outer(nn.Module):
    """Like a LightningModule: it is never called itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


@pytest.mark.parametrize("how", ["root", "pieces", "held in another", "wrapped twice"])
def test_names_are_those_of_the_outermost_module(how: str) -> None:
    net = Net()
    outer = Outer(net) if how == "held in another" else None
    call: Any = net
    if how == "pieces":
        call = lambda x: net.head(net.backbone(x))  # noqa: E731
    elif how == "wrapped twice":
        call = nn.DataParallel(torch.compile(net, backend="eager"))
    with Discovery() as discovery:
        _train(call, net.parameters())
        found = discovery.finish()
    expected = {"Outer": [f"inner.{name}" for name in NORM]} if outer else {"Net": NORM}
    assert _moved(found) == expected
    assert [f.report.steps for f in found if f.report is not None] == [2]


def test_a_model_that_is_never_called_is_found_by_its_optimizer() -> None:
    weight = nn.Linear(4, 1)
    weight.bias.requires_grad_(False)
    with Discovery() as discovery:
        optimizer = SGD(weight.parameters(), lr=0.1)
        for _ in range(3):
            weight.weight.square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                weight.bias.add_(1)
        found = discovery.finish()
    assert _moved(found) == {"Linear": ["bias"]}


def test_parameters_without_a_module_are_no_model() -> None:
    image = nn.Parameter(torch.ones(3))
    with Discovery() as discovery:
        optimizer = SGD([image], lr=0.1)
        image.sum().backward()
        optimizer.step()
        nn.CrossEntropyLoss()(torch.ones(1, 2), torch.tensor([1]))
        assert discovery.finish() == []


def test_what_is_wrapped_after_its_first_forward_is_told_under_its_new_name() -> None:
    net = Net()
    with Discovery() as discovery:
        _train(net, net.parameters())
        outer = nn.Sequential(net, nn.ReLU())
        _train(outer, outer.parameters(), steps=3)
        found = discovery.finish()
    assert _moved(found) == {"Sequential": [f"0.{name}" for name in NORM]}
    assert found[0].report is not None
    assert found[0].report.steps == 5
    assert discovery.bugs == []


def test_a_second_phase_of_a_model_that_was_let_go() -> None:
    net, other = Net(), Net()
    with Discovery() as discovery:
        _train(net, net.parameters())
        gc.collect()
        _train(other, other.parameters())
        gc.collect()
        _train(net, net.parameters(), steps=3)
        found = discovery.finish()
    assert [f.report.steps for f in found if f.report is not None] == [5, 2]
    assert discovery.bugs == []


def test_flags_that_change_without_a_step() -> None:
    net = Net()
    net.requires_grad_(True)
    with Discovery() as discovery:
        net(torch.randn(8, 4))
        net.requires_grad_(False)
        net(torch.randn(8, 4))
        assert _moved(discovery.finish()) == {"Net": NORM}


@pytest.mark.parametrize("watched", [False, True])
def test_unfreezing_a_block_with_a_norm_is_no_alarm(watched: bool) -> None:
    net = Net()
    with Discovery(["backbone"] if watched else []) as discovery:
        net.backbone.eval()
        _train(net, net.parameters())
        net.backbone.requires_grad_(True).train()
        _train(net, net.parameters())
        moved = _moved(discovery.finish())["Net"]
    # What was named on the command line stays watched whatever the script does to its flags.
    everything = sorted([*NORM, "backbone.0.weight", "backbone.1.weight"])
    assert set(moved) >= set(everything) if watched else moved == []


def test_a_selector_is_asked_of_every_model(caplog: pytest.LogCaptureFixture) -> None:
    net, other = Net(), nn.Sequential(nn.Linear(4, 1))
    with Discovery(["head"]) as discovery:
        other(torch.randn(2, 4))
        with caplog.at_level(logging.WARNING, "frostline"):
            # Told at the first step, once; the script runs on.
            _train(other, other.parameters())
            _train(other, other.parameters())
        assert [record.getMessage() for record in caplog.records] == discovery.unmatched
        assert "--frozen head in Sequential" in discovery.unmatched[0]
        _train(net, net.parameters())
        assert discovery.unmatched == []
        assert _moved(discovery.finish())["Net"] == sorted([*NORM, "head.bias", "head.weight"])


@pytest.mark.parametrize(("builds", "steps"), [(1, 3), (2, 3), (9, 1)])
def test_steps_are_those_of_every_optimizer(builds: int, steps: int) -> None:
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(builds))
    with Discovery(steps=steps) as discovery:
        optimizers = [SGD(layer.parameters(), lr=0.1) for layer in layers]
        made = []
        with pytest.raises(StepsDone):  # noqa: PT012 - it is the question which of them raises
            for _ in range(steps + 1):
                for optimizer in optimizers:
                    made.append(optimizer)
                    optimizer.step()
        assert [made.count(optimizer) for optimizer in optimizers] == [steps] * builds
        discovery.finish()


def test_an_optimizer_that_never_steps_holds_nobody_up() -> None:
    layer, idle = nn.Linear(2, 2), nn.Linear(2, 2)
    with Discovery(steps=2) as discovery:
        optimizer, never = SGD(layer.parameters(), lr=0.1), SGD(idle.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.step()
        with pytest.raises(StepsDone):
            optimizer.step()
        assert never.param_groups
        discovery.finish()


def test_a_model_for_each_fold_does_not_stay_in_memory() -> None:
    alive: list[weakref.ref[nn.Module]] = []
    with Discovery() as discovery:
        for _ in range(4):
            net = Net()
            alive.append(weakref.ref(net))
            _train(net, net.parameters())
            gc.collect()
        del net
        assert sum(ref() is not None for ref in alive) <= 2
        found = discovery.finish()
    assert [sorted(c.name for c in f.report.drift) for f in found if f.report is not None] == [
        NORM
    ] * 4


def test_copies_that_are_only_called_are_let_go_in_time() -> None:
    net = Net().eval()
    alive: list[weakref.ref[nn.Module]] = []
    with Discovery() as discovery:
        for _ in range(discovering.AT_ONCE + 4):
            copied = copy.deepcopy(net)
            alive.append(weakref.ref(copied))
            copied(torch.randn(2, 4))
        del copied
        gc.collect()
        assert sum(ref() is not None for ref in alive) == discovering.AT_ONCE
        assert len(discovery.finish()) == discovering.AT_ONCE + 4


def test_an_endless_row_of_models_is_not_followed_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovering, "MOST", 3)
    with Discovery() as discovery:
        for _ in range(5):
            Net().eval()(torch.randn(2, 4))
        assert len(discovery.finish()) == 3
    assert "more than 3 models" in discovery.unwatched["Later models"]


def test_what_has_no_content_yet_is_watched_from_when_it_has() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    for p in net[:2].parameters():
        p.requires_grad = False
    with Discovery() as discovery:
        _train(net, net.parameters(), steps=3)
        found = discovery.finish()
    assert discovery.unwatched == {}
    assert _moved(found) == {"Sequential": [n.replace("backbone.1", "1") for n in NORM]}


def test_what_cannot_be_read_is_named() -> None:
    net = nn.Sequential(nn.Linear(2, 2, device="meta")).requires_grad_(False)
    with Discovery() as discovery:
        for _ in range(discovering.TRIES + 2):
            net(torch.ones(1, 2, device="meta"))
        assert discovery.finish() == []
    assert list(discovery.unwatched) == ["Sequential"]
    assert discovery.bugs == []


def test_an_error_of_ours_is_none_of_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(modules: object) -> list[nn.Module]:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(roots, "outermost", broken)
    net = Net()
    with Discovery() as discovery:
        _train(net, net.parameters())
        assert discovery.finish() == []
    assert "ZeroDivisionError: ours" in discovery.bugs[0]


class _Counts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] = self.seen.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


def _operations(encoder: nn.Module, x: Tensor) -> dict[str, int]:
    with torch.no_grad(), _Counts() as counts:
        encoder(x)
    return counts.seen


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor:UserWarning")
def test_the_fast_path_of_a_transformer_stays_on() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval().requires_grad_(False)
    x = torch.randn(2, 3, 8)
    alone = _operations(encoder, x)
    fast = "aten._transformer_encoder_layer_fwd.default"
    assert alone[fast] == 2
    with Discovery() as discovery:
        encoder(x)
        assert _operations(encoder, x) == alone
        discovery.finish()


def test_compiling_the_full_graph_works_and_is_done_once() -> None:
    net = Net()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(list(graph.graph.nodes)))
        return graph.forward

    torch._dynamo.reset()
    torch.compile(net, backend=backend, fullgraph=True)(torch.randn(8, 4))
    alone = list(graphs)
    graphs.clear()
    torch._dynamo.reset()
    with Discovery() as discovery, warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of global hooks on compiled modules
        compiled = torch.compile(net, backend=backend, fullgraph=True)
        _train(compiled, net.parameters(), steps=3)
        found = discovery.finish()
    assert graphs == alone
    assert _moved(found) == {"Net": NORM}
    assert discovery.bugs == []


def test_a_global_hook_of_the_script_is_still_warned_of() -> None:
    compiled = torch.compile(nn.Linear(2, 2), backend="eager")
    with Discovery() as discovery:
        handle = torch_module.register_module_forward_pre_hook(lambda module, args: None)
        with pytest.warns(UserWarning, match="global hooks"):
            compiled(torch.ones(1, 2))
        handle.remove()
        discovery.finish()


def test_tracing_is_not_disturbed() -> None:
    net = Net().eval()
    with Discovery() as discovery:
        traced = torch.jit.trace(net, torch.randn(2, 4))
        exported = torch.export.export(net, (torch.randn(2, 4),))
        assert discovery.bugs == []
        discovery.finish()
    x = torch.randn(3, 4)
    assert torch.equal(traced(x), net(x))
    assert len(list(exported.graph.nodes)) > 3


def test_a_lazy_proxy_is_not_woken() -> None:
    class Proxy:
        @property
        def __class__(self) -> type:  # type: ignore[override]
            raise AssertionError("somebody asked")

    kept = Proxy()
    assert all(thing is not kept for thing in roots.alive())
    assert sys.getrefcount(kept)


def test_two_threads_may_call_the_same_model_first() -> None:
    net = Net().eval()
    with Discovery() as discovery:
        threads = [threading.Thread(target=net, args=(torch.randn(2, 4),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(discovery.finish()) == 1
    assert discovery.bugs == []
