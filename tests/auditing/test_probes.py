"""What runs of the frozen part show, against each of its modules run by itself."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl
from frostline._names import named_modules, places
from frostline.auditing.claim import claim
from frostline.auditing.gathering import gather
from frostline.auditing.probes import Differing, Probes, probe
from tests.auditing.measuring.surroundings import surroundings
from tests.everything import forget_other_tests
from tests.zoo import ZOO, fresh, live, seeded

QUICK = ("mlp_bn1d", "two_branches", "transformer", "lstm", "bert")
MORE = ("resnet18", "levit", "hf_resnet", "hf_vit", "gpt2", "t5", "wav2vec2", "instance_norm")
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def _alone() -> None:
    forget_other_tests()


def probed(model: nn.Module, batch: Any = X, frozen: Any = None, loss: Any = None) -> Probes:
    claimed = claim(model, frozen)
    before = surroundings([model], None, batch)
    found = probe(model, gather(model, places(model), claimed), batch, loss)
    assert surroundings([model], None, batch) == before
    return found


def names(found: tuple[Differing, ...]) -> list[str]:
    return [each.name for each in found]


def net(middle: nn.Module, *, first: nn.Module | None = None) -> nn.Sequential:
    """Frozen but for its last layer."""
    with seeded(0):
        first = nn.Linear(4, 4) if first is None else first
        model = live(nn.Sequential(first, middle, nn.LayerNorm(4), nn.Linear(4, 2)))
    model[:3].requires_grad_(False)
    return model


WITHOUT_HEAD = ["0", "1", "2"]


# --- it repeats itself ---------------------------------------------------------------------------


class Function(nn.Module):
    """Any function of a tensor."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Remembering(nn.Module):
    """Another output at each call, and no random number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        return x + self.count + self.calls


DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.4),
    "noise": lambda x: x + torch.randn_like(x),
    "python": lambda x: x + random.random(),
    "numpy": lambda x: x + float(np.random.random()),
    "sampled": lambda x: torch.distributions.Normal(x, 1.0).rsample(),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_the_module_that_draws_is_named_and_not_those_behind_it(draw: str) -> None:
    found = probed(net(Function(DRAWS[draw])), frozen=WITHOUT_HEAD)
    assert names(found.unsteady) == ["1"]
    assert found.unsteady[0].effect > 0.01


def test_the_first_comes_first() -> None:
    noise = Function(DRAWS["noise"])
    model = nn.Sequential(nn.Linear(4, 4), noise, nn.Linear(4, 4), Function(DRAWS["dropout"]))
    assert names(probed(model, frozen=["**"]).unsteady) == ["1", "3"]


def test_one_that_is_called_twice_is_named_once() -> None:
    noise = Function(DRAWS["noise"])
    model = nn.Sequential(nn.Linear(4, 4), noise, nn.ReLU(), noise)
    assert names(probed(model, frozen=["**"]).unsteady) == ["1"]


@pytest.mark.parametrize(
    "steady",
    [nn.Dropout(0.5), nn.BatchNorm1d(4), Function(lambda x: F.dropout(x, 0.0)), Remembering(),
     Function(lambda x: x + torch.full_like(x, 1e-9))],
    ids=["dropout", "batch norm", "dropout of nothing", "state", "rounding"],
)  # fmt: skip
def test_what_is_steady(steady: nn.Module) -> None:
    assert probed(net(steady), frozen=WITHOUT_HEAD).unsteady == ()


def test_a_trainable_part_may_draw() -> None:
    noise = Function(DRAWS["noise"])
    assert probed(net(nn.ReLU(), first=noise), frozen=["1", "2"]).unsteady == ()


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_models_of_the_zoo_repeat_themselves(name: str) -> None:
    entry = ZOO[name]
    model = fresh(entry)
    fl.freeze(model, entry.backbone)
    found = probed(model, entry.batch(), loss=entry.loss)
    assert (found.unsteady, found.by_mode, found.outputs) == ((), (), ())
    assert found.notes == ()


# --- modes ---------------------------------------------------------------------------------------


def _by_itself(model: nn.Module, batch: Any, loss: Any) -> tuple[set[str], set[str]]:
    """Leaves that run, and those that give another output in training mode."""
    model, inputs = deepcopy(model).eval(), {}
    leaves = {n: m for n, m in named_modules(model) if not m._modules}
    for name, leaf in leaves.items():
        leaf.register_forward_pre_hook(
            lambda m, args, kwargs, name=name: inputs.setdefault(name, (args, kwargs)),
            with_kwargs=True,
        )
    with torch.no_grad():
        loss(model, batch)
    inputs = dict(inputs)
    differing = set()
    for name, (args, kwargs) in inputs.items():
        leaf = leaves[name]
        leaf._forward_pre_hooks.clear()
        outputs = []
        for training in (False, True):
            with torch.no_grad(), seeded(0):
                output = deepcopy(leaf).train(training)(*deepcopy(args), **deepcopy(kwargs))
            outputs.append(output[0] if isinstance(output, tuple) else output)
        if not torch.allclose(*outputs, rtol=1e-4, atol=1e-5):
            differing.add(name)
    return set(inputs), differing


def _with_all_layers(model: nn.Module) -> nn.Module:
    """Layers that are left out at random in training mode are not there to be compared."""
    for holder in [*model.modules(), getattr(model, "config", model)]:
        if hasattr(holder, "layerdrop"):
            holder.layerdrop = 0.0
    return model


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_modules_that_differ_by_mode(name: str) -> None:
    entry = ZOO[name]
    model = _with_all_layers(fresh(entry))
    for each in fl.selection.select(model, entry.backbone).tensors:
        each.tensor.requires_grad_(False)
    claimed = claim(model, entry.backbone)
    frozen = {n for n, m in named_modules(model) if id(m) in claimed.modules}
    found = probed(model, entry.batch(), frozen=entry.backbone, loss=entry.loss)
    ran, differing = _by_itself(model, entry.batch(), entry.loss)
    assert set(names(found.by_mode)) & ran == differing & frozen
    assert bool(found.by_mode) == bool(found.outputs)


def test_the_size_of_the_difference() -> None:
    model = net(nn.BatchNorm1d(4))
    found = probed(model, frozen="1")
    (by_mode,), (output,) = found.by_mode, found.outputs
    assert by_mode.name == output.name == "1"
    x = model[0](X[:4])  # as many as are used
    trained, evaluated = deepcopy(model[1]).train()(x), deepcopy(model[1]).eval()(x)
    largest = (trained - evaluated).abs().max() / evaluated.square().mean().sqrt()
    assert by_mode.effect == pytest.approx(float(largest), rel=1e-4)
    assert output.effect == pytest.approx(float(largest), rel=1e-4)


def test_causes_alone_and_the_whole_at_the_end() -> None:
    model = nn.Sequential(net(nn.BatchNorm1d(4))[:3], nn.Linear(4, 2))
    model[0].requires_grad_(False)
    found = probed(model)
    assert names(found.by_mode) == ["0.1"]
    assert names(found.outputs) == ["0"]


def test_layers_of_a_list_that_is_never_called() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(net(nn.Dropout(0.3))[:3] for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](x))

    found = probed(Listed(), frozen="layers")
    assert names(found.by_mode) == ["layers.0.1", "layers.1.1"]
    assert names(found.outputs) == ["layers.0", "layers.1"]


def test_a_trainable_part_before_it_changes_nothing() -> None:
    model = net(nn.LayerNorm(4), first=nn.BatchNorm1d(4))
    model[0].requires_grad_(True)
    found = probed(model, frozen=["1", "2"])
    assert (found.by_mode, found.outputs) == ((), ())


def test_part_that_is_held_has_one_mode() -> None:
    model = net(nn.Dropout(0.5))
    assert names(probed(model, frozen=WITHOUT_HEAD).by_mode) == ["1"]
    fl.freeze(model, WITHOUT_HEAD)
    assert probed(model).by_mode == ()


# --- samples -------------------------------------------------------------------------------------


class InTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


def test_modules_that_couple_samples() -> None:
    centred = Function(lambda x: x - x.mean(0))
    model = net(centred)
    for held in (False, True):
        if held:
            fl.freeze(model, WITHOUT_HEAD)
        found = probed(model, frozen=WITHOUT_HEAD)
        assert names(found.coupled) == ["1"]
        assert found.coupled[0].effect == fl.coupling(model, X).couplers[0].effect
        assert found.coupled_by_train == ()


def test_coupling_after_train_only() -> None:
    model = net(InTraining()).eval()
    found = probed(model, frozen=WITHOUT_HEAD)
    assert (names(found.coupled), names(found.coupled_by_train)) == ([], ["1"])
    found = probed(model.train(), frozen=WITHOUT_HEAD)
    assert (names(found.coupled), names(found.coupled_by_train)) == (["1"], [])


def test_a_trainable_part_may_couple() -> None:
    model = net(nn.ReLU(), first=Function(lambda x: x - x.mean(0)))
    found = probed(model, frozen=["1", "2"])
    assert found.coupled == ()
    assert probed(net(nn.BatchNorm1d(4)).eval(), frozen=WITHOUT_HEAD).coupled == ()


@pytest.mark.parametrize("name", ["mlp_bn1d", "two_branches", "hf_resnet"])
def test_coupling_as_the_function_tells_it(name: str) -> None:
    entry = ZOO[name]
    model = fresh(entry)
    claimed = claim(model, entry.backbone)
    frozen = {n for n, m in named_modules(model) if id(m) in claimed.modules}
    found = probed(model, entry.batch(), frozen=entry.backbone, loss=entry.loss)
    told = fl.coupling(model, entry.batch(), compute_loss=entry.loss).names
    assert names(found.coupled) == [n for n in told if n in frozen]
    assert found.coupled


# --- what cannot be told -------------------------------------------------------------------------


def test_one_sample() -> None:
    found = probed(net(nn.BatchNorm1d(4)), X[:1], frozen=WITHOUT_HEAD)
    assert any("there is 1 in the batch" in note for note in found.notes)
    assert any("Expected more than 1 value" in note for note in found.notes)
    assert found.unsteady == ()


def test_a_batch_that_cannot_be_cut() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["rows"]).mean() * batch["weights"].sum()

    batch = {"rows": X, "weights": torch.ones(3)}
    found = probed(net(Function(DRAWS["noise"])), batch, frozen=WITHOUT_HEAD, loss=loss)
    assert names(found.unsteady) == ["1"]  # on the whole batch
    assert any("expected tensors that share their first dimension" in n for n in found.notes)


def test_a_loss_that_fails_is_noted_once() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise ValueError("not today")

    found = probed(net(nn.Dropout()), frozen=WITHOUT_HEAD, loss=loss)
    assert (found.unsteady, found.by_mode, found.coupled) == ((), (), ())
    assert all("not today" in note for note in found.notes)
    assert len(found.notes) == len(set(found.notes)) == 2


def test_a_loss_that_asks_for_gradients_itself() -> None:
    def penalised(model: nn.Module, batch: Tensor) -> Tensor:
        x = batch.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return gradient.square().sum()

    found = probed(net(Function(DRAWS["noise"])), frozen=WITHOUT_HEAD, loss=penalised)
    assert names(found.unsteady) == ["1"]


def test_nothing_frozen() -> None:
    model = nn.Linear(4, 2)
    found = probed(model)
    assert (found.unsteady, found.coupled, found.by_mode, found.notes) == ((), (), (), ())
