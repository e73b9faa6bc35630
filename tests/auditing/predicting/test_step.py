"""What else a predicted step tells, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

import frostline as fl
from frostline._names import named_tensors
from frostline.auditing.predicting import NotPredictable, predict
from frostline.auditing.predicting.undeclared import STATISTICS
from frostline.errors import BatchError
from tests.auditing.predicting.truth import adamw, compared, sgd, without_data
from tests.auditing.predicting.writers import batch, built, observed
from tests.zoo import BREADTH, ZOO, fresh


def squared(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().sum()


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(x).detach())


def test_reached_are_those_with_a_gradient() -> None:
    model = Detached()
    step = predict(model, sgd(model), batch(), squared, train=False)
    assert step.reached == {id(model.after.weight), id(model.after.bias)}
    assert step.changed == step.reached


def test_without_an_optimizer_only_the_forward_changes_something() -> None:
    model = built("batch norm")
    step = predict(model, None, batch(), squared, train=False)
    names = {id(e.tensor): e.name for e in named_tensors(model)}
    assert {names[key] for key in step.changed} == {
        "1.running_mean", "1.running_var", "1.num_batches_tracked"
    }  # fmt: skip
    assert (step.how, step.raised) == ("predicted", "")
    assert len(step.reached or ()) == 5


@pytest.mark.parametrize("rows", [1, 2])
def test_one_value_per_channel_ends_the_step(rows: int) -> None:
    model = built("batch norm")
    step = predict(model, sgd(model), torch.zeros(rows, 4, device="meta"), None, train=True)
    assert step.raised.startswith("Expected more than 1 value per channel") == (rows == 1)
    # Torch counts before it asks for the number of values.
    assert (step.changed == {id(model[1].num_batches_tracked)}) == (rows == 1)


def test_a_loss_without_a_graph_ends_the_step() -> None:
    model = built("batch norm").requires_grad_(False)
    step = predict(model, sgd(model), batch(), squared, train=True)
    assert step.raised == "the loss has no graph: no trainable parameter is in it"
    assert id(model[1].running_mean) in step.changed
    assert step.reached == frozenset()


class Stubborn(nn.Sequential):
    """Keeps its norm in eval mode, whoever calls train(), as the fix in the forums does."""

    def train(self, mode: bool = True) -> Stubborn:
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize("kind", [nn.Sequential, Stubborn])
def test_an_override_of_train_counts(kind: type[nn.Sequential]) -> None:
    model = kind(*built("batch norm")).eval()
    step = predict(model, None, batch(), squared, train=True)
    assert (id(model[1].running_mean) in step.changed) == (kind is nn.Sequential)
    assert not model[1].training
    assert not model.training


def asks_for_a_value(model: nn.Module, inputs: Tensor) -> Tensor:
    loss = squared(model, inputs)
    return loss if loss.item() > 0 else -loss


def looks_into_memory(model: nn.Module, inputs: Tensor) -> Tensor:
    return squared(model, inputs) * float(model[0].weight.detach().numpy().sum())


def test_what_needs_values_is_refused_in_words() -> None:
    model = built("batch norm")
    with pytest.raises(NotPredictable, match="its code depends on values"):
        predict(model, None, batch(), asks_for_a_value, train=False)
    with pytest.raises(NotPredictable, match=r"looks into memory by numpy\(\)"):
        predict(model, None, batch(), looks_into_memory, train=False)
    with pytest.raises(NotPredictable, match="its code depends on values"):
        predict(observed(FakeQuantize), None, batch(), squared, train=False)


def test_no_loss_is_an_error_of_ours() -> None:
    with pytest.raises(BatchError, match=r"returned a tensor of torch.float32, shape \[6, 2\]"):
        predict(built("batch norm"), None, batch(), lambda m, b: m(b), train=False)


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_layers_dropped_at_random(probability: float) -> None:
    """With probability 0 nothing is dropped, whatever is drawn."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return x if torch.rand([]) < probability else self.norm(x)

    model = Dropping()
    if probability:
        with pytest.raises(NotPredictable):
            predict(model, None, batch(), squared, train=True)
    else:
        assert compared(model, sgd, batch(), squared).wrong == set()


@pytest.mark.parametrize("frozen_on", ["cpu", "meta"])
def test_a_model_that_is_partly_on_meta(frozen_on: str) -> None:
    model = nn.Sequential(
        nn.Linear(4, 4, device=frozen_on),
        nn.BatchNorm1d(4, device=frozen_on),
        nn.Linear(4, 2, device="meta"),
    )
    model[:2].requires_grad_(False)
    step = predict(model, adamw(model), batch(), squared, train=True)
    norm = [model[1].running_mean, model[1].running_var, model[1].num_batches_tracked]
    assert step.changed == {id(t) for t in (*norm, *model[2].parameters())}


@pytest.mark.parametrize("name", ["bert", "hf_resnet"])
@pytest.mark.parametrize("held", [False, True])
def test_models_that_compute_their_own_loss(name: str, held: bool) -> None:
    entry = {**ZOO, **BREADTH}[name]
    model = fresh(entry).train()
    if held:
        fl.freeze(model, entry.backbone)
    found = compared(model, adamw, entry.batch(), None)
    assert found.wrong == set()
    assert found.step.loss == "the loss of model(**batch)"
    moving = [n for n in found.predicted if "running" in n]
    assert bool(moving) == (name == "hf_resnet" and not held)


def test_a_distillation_outside_of_the_model() -> None:
    """A teacher in the loss is no tensor of the model; nothing of it is written, either."""
    teacher, model = built("batch norm").train(), built("batch norm")
    before = teacher[1].running_mean.clone()

    def distil(student: nn.Module, inputs: Tensor) -> Tensor:
        return F.mse_loss(student(inputs), teacher(inputs).detach())

    step = predict(model, sgd(model), without_data(batch()), distil, train=True)
    assert id(model[1].running_mean) in step.changed
    assert id(teacher[1].running_mean) not in step.changed
    assert torch.equal(teacher[1].running_mean, before)


@pytest.mark.parametrize("name", STATISTICS)
def test_operations_that_keep_statistics_take_them_where_we_look(name: str) -> None:
    arguments = getattr(torch.ops.aten, name).default._schema.arguments
    found = STATISTICS[name]
    assert [arguments[i].name for i in found.written] == ["running_mean", "running_var"]
    assert arguments[found.momentum].name in ("momentum", "exponential_average_factor")
    if found.training is not None:
        assert arguments[found.training].name == "training"
