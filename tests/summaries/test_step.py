"""What a step is said to take, against a real step: on every model of the zoo, frozen and not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.summaries import summary
from tests.summaries import measuring
from tests.zoo import BREADTH, ZOO, seeded

ALL = {**ZOO, **BREADTH}
QUICK = ("two_branches", "conv_bn3d", "instance_norm", "transformer", "lstm", "gru", "resnet18")
CLOSE = 0.03
# They ask for values, or run in a library that alone knows its workspace.
MEASURED = ("lstm", "wav2vec2", "whisper")

every_model = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)


def with_all_layers(model: nn.Module) -> nn.Module:
    """LayerDrop leaves out layers at random, so that no two forwards take the same."""
    for holder in [*model.modules(), getattr(model, "config", model)]:
        for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
            if hasattr(holder, name):
                setattr(holder, name, 0.0)
    return model


def deviation(said: int | None, measured: int) -> float:
    assert said is not None
    return abs(said - measured) / measured


@every_model
@pytest.mark.parametrize("how", ["trainable", "flags", "held"])
def test_a_step_takes_what_is_said(
    name: str, how: str, record_property: Callable[[str, object], None]
) -> None:
    entry = ALL[name]
    model = with_all_layers(measuring.build(entry, how))
    optimizer = torch.optim.AdamW(model.parameters())
    with seeded(3):
        found = summary(model, optimizer=optimizer, batch=entry.batch())
    with seeded(3):
        saved = measuring.activations(model, entry.batch())
    measuring.step(entry, model, optimizer)
    off = {
        "activations": deviation(found.activation_bytes, saved),
        "gradients": deviation(found.gradient_bytes, measuring.gradients(model)),
        "optimizer": deviation(found.optimizer_bytes, measuring.state(optimizer)),
    }
    record_property("deviation", {key: f"{value:.3%}" for key, value in off.items()})
    assert max(off.values()) < CLOSE, off
    assert found.activation_how == "predicted" or name in MEASURED


class Blocks(nn.Module):
    """Four blocks, run under checkpointing or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 64))
            for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_checkpointing_saves(reentrant: bool | None) -> None:
    model, batch = Blocks(reentrant), (torch.randn(2048, 64).requires_grad_(),)
    found = summary(model, batch=batch)
    assert found.activation_how == "predicted"
    # Random states for the recomputation are made past torch's dispatcher.
    assert deviation(found.activation_bytes, measuring.activations(model, batch)) < CLOSE
    inputs = 4 * 2048 * 64 * 4
    if reentrant is not None:
        assert found.activation_bytes < inputs


def test_frozen_layers_save_nothing_below_the_first_trainable_one() -> None:
    model = nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4)
    )
    batch = torch.randn(10, 8)
    everything = summary(model, batch=batch).activation_bytes
    fl.freeze(model, ["0", "2"])
    # The last layer saves its input for its weight's gradient; the loss is kept, too.
    assert summary(model, batch=batch).activation_bytes == 10 * 16 * 4 + 4
    assert everything == 10 * 32 * 4 + 10 * 16 * 4 + 4
    fl.unfreeze(model, "2")
    # Once more the weight of the last layer, but that is there anyway.
    assert summary(model, batch=batch).activation_bytes == everything


def test_modes_count() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Linear(32, 4))
    batch = torch.randn(10, 8)
    train = summary(model, batch=batch).activation_bytes
    # The mask, which on a CPU is of the input's type; in eval dropout passes its input on.
    assert train - summary(model.eval(), batch=batch).activation_bytes == 10 * 32 * 4


def test_autocast_counts() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    batch = torch.randn(10, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = summary(model, batch=batch)
        measured = measuring.activations(model, (batch,))
        # Copies of weights that autocast remembers must not come from a run without memory.
        model(batch).float().sum().backward()
    assert found.activation_how == "predicted"
    assert found.activation_bytes == measured
    assert all(type(p.grad) is torch.Tensor for p in model.parameters())


def test_a_prediction_allocates_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    rows = 10**10  # of 8 numbers each, and all of them one number in memory
    found = summary(model, batch=torch.zeros(1, 1).expand(rows, 8))
    assert found.activation_how == "predicted"
    assert found.activation_bytes == rows * 32 * 4 + 4


def test_grad_mode_of_the_caller_is_of_no_consequence() -> None:
    model, batch = nn.Sequential(nn.Linear(8, 4), nn.Tanh()), torch.randn(3, 8)
    expected = summary(model, batch=batch).activation_bytes
    assert expected == 3 * 4 * 4 + 4
    with torch.no_grad():
        assert summary(model, batch=batch).activation_bytes == expected
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert summary(model, batch=batch).activation_bytes == expected


class AsksForValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mul_(2)
        return torch.tanh(self.layer(x)) if x.sum() < 1e9 else x


def test_a_model_that_asks_for_values_is_run() -> None:
    model, batch = AsksForValues(), torch.randn(5, 8)
    before, version = batch.clone(), batch._version
    found = summary(model, batch=batch)
    assert found.activation_how == "measured"
    assert "measured by a run" in str(found)
    assert found.activation_bytes == 5 * 8 * 4 + 4
    assert torch.equal(batch, before)
    assert batch._version == version


class HasLoss(nn.Module):
    """Gives its loss and, beside it, an output on which nothing of the loss depends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.other(x).sigmoid(), "loss": self.layer(x).tanh().sum()}


def test_what_is_kept_is_said() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
    x = torch.randn(3, 8)
    assert summary(model, batch=x).activation_of == "model(batch), keeping the sum of its output"
    assert summary(model, batch=[x]).activation_of.startswith("model(batch[0])")
    assert summary(HasLoss(), batch={"x": x}).activation_of == "model(**batch), keeping its loss"
    assert summary(HasLoss(), batch={"x": x}).activation_bytes == 3 * 4 * 4 + 4


class Remembers(nn.Module):
    """Keeps its last output in itself, and one more outside of every model."""

    outside: list[torch.Tensor] = []  # noqa: RUF012

    def __init__(self, outside: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.last: torch.Tensor | None = None
        self.all: list[torch.Tensor] = []
        self.keeps_outside = outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(x)
        self.last = torch.tanh(hidden)
        self.all.append(self.last)
        if self.keeps_outside:
            self.outside.append(hidden.detach())
        return self.last


def test_what_a_module_remembers_is_not_saved_for_backward() -> None:
    model, batch = Remembers(outside=False), torch.randn(3, 8)
    found = summary(model, batch=batch)
    assert found.activation_bytes == 3 * 8 * 4 + 4
    assert found.notes == ()
    assert model.last is None
    assert model.all == []


def test_what_stays_outside_of_the_model_is_told() -> None:
    try:
        found = summary(Remembers(outside=True), batch=torch.randn(3, 8))
    finally:
        Remembers.outside.clear()
    assert found.activation_bytes == 3 * 8 * 4 + 4
    assert found.notes[0].startswith("the forward left 96 B in an object outside of the model")


def test_an_output_without_numbers_to_train_on() -> None:
    class Decides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(1)

    assert summary(Decides(), batch=torch.randn(3, 8)).activation_bytes == 0


def test_compiled_models_are_counted_as_they_run_eagerly() -> None:
    model, batch = nn.Sequential(nn.Linear(8, 4), nn.Tanh()), torch.randn(3, 8)
    expected = summary(model, batch=batch).activation_bytes
    compiled = torch.compile(model, backend="eager")
    compiled(batch)
    assert summary(compiled, batch=batch).activation_bytes == expected
    inner = nn.Sequential(compiled)
    assert summary(inner, batch=batch).activation_bytes == expected


def test_compiling_is_still_to_come() -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(8, 4), nn.Tanh()), backend=backend))
    summary(model, batch=torch.randn(3, 8))
    assert compiled == []
    model(torch.randn(3, 8))
    assert len(compiled) == 1


def test_models_without_memory() -> None:
    with torch.device("meta"):
        model, batch = nn.Sequential(nn.Linear(8, 4), nn.Tanh()), torch.randn(3, 8)
    found = summary(model, batch=batch, optimizer=torch.optim.AdamW(model.parameters()))
    assert (found.bytes, found.gradient_bytes, found.optimizer_bytes) == (144, 144, 2 * 144 + 8)
    assert found.activation_bytes == 3 * 4 * 4 + 4
