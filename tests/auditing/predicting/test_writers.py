"""What forwards write by themselves, predicted without data and then done."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.auditing.predicting.truth import adamw, compared, on_meta, sgd, without_data
from tests.auditing.predicting.writers import WRITERS, Words, batch, built
from tests.zoo import live, seeded

# All else is decided.
UNDECIDED = {
    "buffers replaced": {"cache"},
    "codebook": {"sizes"},
    "momentum teacher": {"teacher.weight", "teacher.bias"},
    "spectral norm": {"parametrizations.weight.0._u", "parametrizations.weight.0._v"},
    "observer": {"1.zero_point"},
}
# Of a bias before batch norm the gradient is zero but for rounding: AdamW's decay moves it, too.
ONLY_SGD = {"checkpoint": {"first.bias"}, "checkpoint, reentrant": {"first.bias"}}


def squared(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().sum()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("make", [sgd, adamw], ids=["sgd", "adamw"])
def test_a_step_changes_what_was_predicted(name: str, make) -> None:
    found = compared(built(name), make, batch(), squared)
    assert found.wrong == set()
    by_optimizer = ONLY_SGD.get(name, set()) if make is sgd else set()
    assert set(found.undecided) == UNDECIDED.get(name, set()) | by_optimizer
    assert found.predicted


@pytest.mark.parametrize("name", WRITERS)
def test_eval_mode_and_train_are_told_apart(name: str) -> None:
    for train in (False, True):
        found = compared(built(name).eval(), None, batch(), squared, train=train)
        assert found.wrong == set()


def test_a_norm_in_eval_mode_writes_nothing() -> None:
    found = compared(built("batch norm").eval(), None, batch(), squared)
    assert found.predicted == set()
    assert found.step.calls == {}


@pytest.mark.parametrize(
    "name",
    ["batch norm", "batch norm, momentum None", "counter and average", "codebook", "data swapped",
     "checkpoint", "buffers replaced", "spectral norm"],
)  # fmt: skip
def test_a_model_without_memory_is_told_the_same(name: str) -> None:
    model = built(name)
    step = on_meta(model, adamw, batch(), squared, train=True)
    real = compared(model, adamw, batch(), squared, train=True)
    assert len(step.changed) == len(real.predicted)
    assert len(step.undecided) == len(real.undecided)


def test_recomputation_counts_twice() -> None:
    for name in ("checkpoint", "checkpoint, reentrant"):
        model = built(name)
        before = int(model.norm.num_batches_tracked)
        found = compared(model, sgd, batch(), squared)
        assert found.step.calls == {id(model.norm): 2}
        assert int(model.norm.num_batches_tracked) - before == 2


def test_the_writer_is_named() -> None:
    model = built("batch norm")
    step = compared(model, sgd, batch(), squared).step
    assert step.writers[id(model[1].running_mean)] == "aten.native_batch_norm in 1"
    assert step.writers[id(model[2].weight)] == "aten.add in SGD.step"


@pytest.mark.parametrize(("longest", "kind"), [(0.1, "still"), (3.0, "open")])
def test_a_frozen_table_with_max_norm(longest: float, kind: str) -> None:
    """Rows that are short enough stay; of long ones it depends on the words looked up."""
    with seeded(3):
        model = Words(max_norm=0.5)
        table = model.table.weight.requires_grad_(False)
        table.div_(table.norm(dim=1, keepdim=True)).mul_(longest)
    found = compared(model, sgd, batch(), squared)
    assert found.wrong == set()
    assert ("table.weight" in found.undecided) == (kind == "open")


def test_interleaved_windows_on_one_memory_are_told_apart() -> None:
    class Interleaved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.randn(4, 6)
            self.register_buffer("even", flat[:, ::2])
            self.register_buffer("odd", flat[:, 1::2])
            self.register_buffer("left", flat[:, :3])

        def forward(self, x: Tensor) -> Tensor:
            self.even += x.detach().mean()
            return x

    found = compared(Interleaved(), None, batch(), squared)
    assert found.wrong == set()
    assert found.predicted == {"even", "left"}


def test_a_predicted_zero_is_a_zero() -> None:
    """Behind a layer of zeros no gradient comes; a single other number lets it through."""
    model = built("adapter that begins at zero")
    assert "down.weight" not in compared(model, sgd, batch(), squared).predicted
    model = built("adapter that begins at zero")
    with torch.no_grad():
        model.up.weight[1, 1] = 0.5
    found = compared(model, sgd, batch(), squared)
    assert "down.weight" in found.predicted
    assert found.wrong == set()


def test_a_batch_keeps_its_form() -> None:
    inputs = {"a": torch.ones(2), "b": [torch.ones(1), "text"], "c": (1, None)}
    made = without_data(inputs)
    assert made["a"].is_meta
    assert made["b"][0].is_meta
    assert (made["b"][1], made["c"]) == ("text", (1, None))


ENDS = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "layer norm": lambda: nn.LayerNorm(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "softmax": lambda: nn.Softmax(-1),
    "tanh": nn.Tanh,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("lived", [False, True], ids=["new", "lived"])
def test_the_mean_of_what_has_a_fixed_mean_has_no_gradient(end: str, lived: bool) -> None:
    """But for rounding; of a layer norm that has lived it has one."""
    model = nn.Sequential(nn.Linear(4, 4), ENDS[end]())
    if lived:
        live(model)
    found = compared(model, sgd, batch())
    assert found.wrong == set()
    has_one = end == "tanh" or (lived and end in ("layer norm", "group norm"))
    assert ("0.weight" in found.predicted) == has_one
