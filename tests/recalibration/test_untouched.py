"""That nothing but the statistics changes, nothing at all after an error, and that undo undoes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import AccumulationError, BatchError, ModelGone
from frostline.recalibration import recalibrate, room
from frostline.recalibration.recalibrate import Method
from tests.everything import contents, everything, without_versions
from tests.recalibration import truth
from tests.zoo import ZOO, fresh, live

METHODS: list[Method] = ["layerwise", "merged"]


def lived(name: str) -> tuple[nn.Module, list[Any]]:
    """A model with gradients, modes of its own and a hook, and two batches for it."""
    model = fresh(ZOO[name])
    ZOO[name].loss(model, ZOO[name].batch()).backward()
    next(model.children()).eval()
    model.register_forward_hook(lambda *_: None)
    return model, [ZOO[name].batch(), ZOO[name].batch()]


def state(model: nn.Module) -> tuple[Any, ...]:
    numpy = np.random.get_state()[1].tobytes()
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    rng = torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy
    return without_versions(everything(model)), modes, rng


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["levit", "hf_resnet"])
def test_undo_brings_everything_back(name: str, method: Method) -> None:
    model, batches = lived(name)
    before, bytes_before = state(model), contents(model)
    result = recalibrate(model, batches, method=method)
    changed = {k for k, v in contents(model).items() if v != bytes_before[k]}
    names = {f"{row.name}.{b}" for row in result.rows for b in ("running_mean", "running_var")}
    counters = {f"{row.name}.num_batches_tracked" for row in result.rows}
    assert changed == names | counters
    result.undo()
    assert state(model) == before
    result.undo()
    assert state(model) == before


@pytest.mark.parametrize("method", METHODS)
def test_random_numbers_and_self_written_state_are_put_back(method: Method) -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))
            self.sizes: list[int] = []
            self.bound = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            self.seen += x.detach().sum(0)
            self.bound.data.mul_(0.5)
            np.random.rand()
            random.random()
            return x + torch.rand_like(x) * self.bound

    model, batches = nn.Sequential(Restless(), nn.BatchNorm1d(3)), list(torch.randn(12, 3).split(4))
    before = state(model)
    result = recalibrate(model, batches, method=method)
    assert model[0].sizes == []
    first = truth.statistics(model)
    result.undo()
    assert state(model) == before
    recalibrate(model, batches, method=method)
    assert truth.distance(truth.statistics(model), first) == 0


@pytest.mark.parametrize("method", METHODS)
def test_batches_that_the_model_writes_to_are_not_the_callers(method: Method) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(3)).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    exact, old = truth.truth(model, x.clone()), x.clone()
    recalibrate(model, list(x.split(3)), method=method)
    assert torch.equal(x, old)
    assert truth.distance(truth.statistics(model), exact) < 1e-14


def test_a_module_that_doubles_its_input_in_place_sees_each_batch_once() -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    model = nn.Sequential(Doubles(), nn.BatchNorm1d(3)).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    exact = truth.truth(model, x.clone())
    recalibrate(model, list(x.split(3)))
    assert truth.distance(truth.statistics(model), exact) < 1e-14


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_raises_in_its_third_batch_is_as_before(
    method: Method, on_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "IN_MEMORY", 0 if on_disk else 2**30)

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 5:
                raise KeyError("labels")
            return x

    model = live(nn.Sequential(nn.Linear(300, 3), nn.BatchNorm1d(3), Fails(), nn.BatchNorm1d(3)))
    batches = [torch.randn(n, 300) for n in (4, 4, 5, 4)]
    before = without_versions(everything(model)), state(model)
    with pytest.raises(BatchError, match=r"^batch 2: model\(batch\) raised KeyError: 'labels'"):
        recalibrate(model, batches, method=method)
    assert (without_versions(everything(model)), state(model)) == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_first_norm_that_sees_them(
    method: Method, value: float
) -> None:
    model = live(truth.Shared())
    batches = [torch.randn(4, 5) for _ in range(3)]
    batches[1][2, 3] = value
    before = state(model)
    with pytest.raises(AccumulationError, match=r"^the input of norm is not finite"):
        recalibrate(model, batches, method=method)
    assert state(model) == before


def test_a_loader_that_raises_leaves_the_model_as_it_was() -> None:
    def broken() -> Iterator[Tensor]:
        yield torch.randn(4, 5)
        raise OSError("the disk is gone")

    model = live(truth.Shared())
    before = state(model)
    with pytest.raises(OSError, match="the disk is gone"):
        recalibrate(model, broken(), method="merged")
    assert state(model) == before


@pytest.mark.parametrize("wrap", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_grad_mode_is_the_callers_own_affair(wrap: Callable[[], Any]) -> None:
    model, x = live(truth.Shared()), torch.randn(8, 5)
    recalibrate(model, [x])
    found = truth.statistics(model)
    with wrap():
        recalibrate(model, [x])
    assert truth.distance(truth.statistics(model), found) == 0
    model(x).sum().backward()  # nothing in the model was made under inference mode


def test_a_model_that_was_made_under_inference_mode() -> None:
    with torch.inference_mode():
        model, x = truth.Shared(), torch.randn(8, 5)
        found = truth.truth_of_inputs(model, x)
    result = recalibrate(model, [x])
    assert truth.distance(truth.statistics(model), found) < 1e-5
    result.undo()
    assert model.norm.running_mean.abs().max() == 0


def test_undo_follows_the_model_and_knows_when_it_is_gone() -> None:
    model = truth.Shared()
    result = recalibrate(model, [torch.randn(8, 5)])
    model.double()
    result.undo()
    assert model.norm.running_mean.abs().max() == 0
    model.norm.running_mean = torch.zeros(3)
    with pytest.raises(ModelGone, match=r"norm\.running_mean is gone or has another shape"):
        result.undo()
    del model
    with pytest.raises(ModelGone):
        result.undo()
    assert result.old["norm.running_mean"].shape == (7,)


def test_a_part_beside_it_does_not_mind() -> None:
    model = live(
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    )
    part = fl.freeze(model, ["0", "1"])
    recalibrate(model, [torch.randn(8, 3)])
    part.assert_unchanged()
    assert str(part).count("ignored") == 0  # our own switching of modes is no call of the user


def test_a_compiled_model() -> None:
    model = live(truth.UNet()).double()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    exact = truth.truth(model, x)
    compiled = torch.compile(deepcopy(model), backend="eager")
    recalibrate(compiled, list(x.split(2)))
    found = {k.removeprefix("_orig_mod."): v for k, v in truth.statistics(compiled).items()}
    assert truth.distance(found, exact) < 1e-13
