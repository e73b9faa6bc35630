"""`fl.explain`: what it tells of real models, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import frostline as fl
from frostline._state import same_bits
from frostline.errors import BatchError, SelectionError
from frostline.selection import select
from tests.breadth_twins import changed_by_flag_only, flag_only_twin
from tests.everything import everything
from tests.zoo import BREADTH, ZOO, live

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/formats/explanation-v1.schema.json").read_text()
)


def flagged(name: str) -> nn.Module:
    """The model of the zoo with its backbone frozen by the flag alone."""
    model = ZOO[name].build()
    for entry in select(model, ZOO[name].backbone).tensors:
        if entry.kind == "parameter":
            entry.tensor.requires_grad_(False)
    return model


def changed_by(model: nn.Module, run: Any) -> set[str]:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    run()
    return {name for name, tensor in state.items() if not same_bits(tensor, before[name])}


class Queue(nn.Module):
    """Writes to itself as codebooks and queues do, in a method that forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(4, 3))
        self.register_buffer("start", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._enqueue(x)
        return x * self.scale

    def _enqueue(self, x: Tensor) -> None:
        self.rows[self.start] = x.detach().mean(0)
        self.start.add_(1).remainder_(4)


class Shy(nn.Module):
    """Writes where reading its code does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        getattr(self, "se" + "en").add_(1)
        return x


# --- what is told ----------------------------------------------------------------------------


def test_equal_modules_are_told_once_with_their_formulas() -> None:
    explanation = fl.explain(flagged("two_branches"))
    trunk, second = explanation.rows
    assert trunk.names == ("trunk.0.1", "trunk.1.1", "trunk.3.1")
    assert trunk.sizes == ("8", "12", "16")
    assert (trunk.leaks, trunk.line) == (True, "fl.freeze(model, fl.FLAGGED)")
    assert (second.leaks, second.line) == (False, 'fl.freeze(model, "second")')
    assert [str(write) for write in trunk.behaviour.now.writes] == [
        "running_mean <- 0.9 running_mean + 0.1 batch mean",
        "running_var <- 0.9 running_var + 0.1 batch variance (n-1)",
        "num_batches_tracked <- num_batches_tracked + 1",
    ]


def test_every_line_that_is_given_holds() -> None:
    model = flagged("two_branches")
    for row in fl.explain(model).rows:
        with eval(row.line, {"fl": fl, "model": model}):
            held = [r for r in fl.explain(model).rows if r.behaviour.held]
            assert set(row.names) <= {name for r in held for name in r.names}


def test_held_modules_are_said_to_be_held() -> None:
    model = flagged("two_branches")
    part = fl.freeze(model, fl.FLAGGED)
    row = next(row for row in fl.explain(model).rows if "trunk.0.1" in row.names)
    assert row.behaviour.held
    assert not row.leaks
    assert (row.line, row.behaviour.now.writes) == ("", ())
    assert "now: eval mode, held" in str(fl.explain(model))
    part.undo()
    fl.freeze(model, "trunk", stats="batch", mode="follow")
    row = next(row for row in fl.explain(model).rows if "trunk.0.1" in row.names)
    assert (row.behaviour.held, row.behaviour.now.statistics) == (True, "batch")
    assert row.behaviour.now.writes == ()
    row = next(row for row in fl.explain(model.eval()).rows if "trunk.0.1" in row.names)
    assert row.behaviour.in_training.writes == ()  # asked about the mode that it is not in


def test_statistics_that_are_meant_to_move_are_no_leak() -> None:
    model = flagged("two_branches")
    fl.freeze(model, fl.FLAGGED, stats="update")
    explanation = fl.explain(model)
    row = next(row for row in explanation.rows if "trunk.0.1" in row.names)
    assert (row.follows, row.leaks, explanation.leaky) == (True, False, [])
    assert fl.summary(model).leaky == []
    assert "move on purpose" in str(explanation)


def test_layer_norm_stands_beside_batch_norm() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4))
    batch, layer = fl.explain(net).rows
    assert (batch.behaviour.same_in_both, layer.behaviour.same_in_both) == (False, True)
    assert (layer.line, layer.behaviour.now.writes) == ("", ())
    assert "nothing: it has no statistics" in str(fl.explain(net, "1"))


WRITERS: dict[str, tuple[Any, set[str]]] = {
    "spectral norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(3, 3)),
        {"parametrizations.weight.0._u", "parametrizations.weight.0._v"},
    ),
    "old spectral norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
        {"weight_u", "weight_v"},
    ),
    "codebook": (Queue, {"rows", "start"}),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (3, 1)), nn.Upsample(scale_factor=2),
            nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten(),
        ),
        {"2.running_mean", "2.running_var"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_who_writes_in_training_writes_what_is_said(kind: str) -> None:
    make, expected = WRITERS[kind]
    torch.manual_seed(0)
    module = live(make()).requires_grad_(False)
    net = nn.ModuleDict({"part": module, "head": nn.Linear(3, 1)})
    net["part"].register_parameter("anchor", nn.Parameter(torch.zeros(()), requires_grad=False))
    said = {name.removeprefix("part.") for name in fl.explain(net).leaky}
    assert said == expected
    x = torch.randn(5, 3)
    for parameter in module.parameters():  # away from the fixed point of a fresh power iteration
        parameter.data.copy_(torch.randn(parameter.shape))
    assert changed_by(module, lambda: module(x)) == expected
    module.eval()
    assert fl.explain(net).leaky == []
    assert changed_by(module, lambda: module(x)) == set()


def test_max_norm_and_observers_write_in_eval_too() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, max_norm=0.1).requires_grad_(False).eval()
    net = nn.ModuleDict({"part": table, "head": nn.Linear(3, 1)})
    assert fl.explain(net).leaky == ["part.weight"]
    assert changed_by(table, lambda: table(torch.arange(5))) == {"weight"}
    fl.freeze(net, "part")
    assert fl.explain(net).leaky == []
    assert changed_by(table, lambda: table(torch.arange(5))) == set()


def test_code_that_asks_for_the_mode_is_quoted() -> None:
    (row,) = fl.explain(nn.Sequential(Queue())).rows
    assert (row.behaviour.kind, row.behaviour.sure) == ("unknown", False)
    assert re.fullmatch(r"test_explain\.py:\d+: if self\.training:", row.behaviour.now.symbols)


def test_code_that_only_gates_checkpointing_is_not_told() -> None:
    told = {row.kind for row in fl.explain(ZOO["bert"].build()).rows}
    assert told == {"Dropout", "LayerNorm", "BertSelfAttention"}


def test_a_dropout_of_nothing_is_not_told() -> None:
    assert fl.explain(nn.Sequential(nn.Dropout(0.0), nn.Linear(1, 1))).rows == ()
    assert "none of 2 modules" in str(fl.explain(nn.Sequential(nn.Dropout(0.0))))


# --- the run ---------------------------------------------------------------------------------


def test_a_run_says_what_ran_and_what_was_written() -> None:
    model = flagged("resnet18")
    explanation = fl.explain(model, batch=ZOO["resnet18"].batch())
    observed = explanation.observed
    assert explanation.called == "model(batch[0])"
    assert observed is not None
    wrote = {f"{name}.{t}" for name, seen in observed.items() for t in seen.wrote}
    assert set(explanation.leaky) <= wrote
    assert changed_by(model, lambda: model(ZOO["resnet18"].batch()[0])) == wrote
    assert all(explanation.surprises(row) == {} for row in explanation.rows)


def test_a_wrapper_and_what_it_wraps_run_once_each() -> None:
    norm = live(nn.BatchNorm1d(3))
    observed = fl.explain(nn.DataParallel(norm), batch=torch.randn(4, 3)).observed
    assert observed is not None
    assert [seen.calls for seen in observed.values()] == [1]


def test_a_shared_module_is_told_once_with_all_its_calls() -> None:
    norm = live(nn.BatchNorm1d(3))
    observed = fl.explain(nn.Sequential(norm, norm), batch=torch.randn(4, 3)).observed
    assert observed is not None
    assert observed["0"].calls == 2
    assert observed["0"].wrote == ("running_mean", "running_var", "num_batches_tracked")
    assert "1" not in observed


def test_a_write_that_nobody_said_is_a_surprise() -> None:
    class Teller(Shy):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else x

    net = nn.Sequential(Teller())
    explanation = fl.explain(net, batch=torch.zeros(1))
    (row,) = explanation.rows
    assert explanation.surprises(row) == {"0": ("seen",)}
    assert "wrote seen, which is not said above" in str(explanation)


@pytest.mark.parametrize("name", ["resnet18", "wav2vec2", "gpt2", "levit"])
def test_nothing_is_touched(name: str) -> None:
    model = flagged(name)
    before = everything(model)
    fl.explain(model, batch=ZOO[name].batch(), microbatches=2)
    assert everything(model) == before


def test_lists_and_batches_are_put_back() -> None:
    class Notes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            return x.mul_(2)

    model, batch = nn.Sequential(Notes(), nn.BatchNorm1d(3)), torch.randn(4, 3)
    old = batch.clone()
    fl.explain(model, batch=batch, microbatches=2)
    assert model[0].sizes == []
    assert torch.equal(batch, old)


def test_nothing_is_touched_when_the_model_raises() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("labels")

    model = nn.Sequential(live(nn.BatchNorm1d(3)), Fails())
    before = everything(model)
    with pytest.raises(BatchError, match=r"model\(batch\) raised KeyError"):
        fl.explain(model, batch=torch.randn(4, 3))
    assert everything(model) == before


# --- the zoo ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ZOO, *BREADTH])
def test_what_is_called_leaky_is_what_a_step_changes(name: str) -> None:
    entry = {**ZOO, **BREADTH}[name]
    assert set(fl.explain(flag_only_twin(entry).train()).leaky) == changed_by_flag_only(entry)


# --- how it looks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "wav2vec2", "levit", "t5"])
def test_it_fits_80_columns_and_the_schema(name: str) -> None:
    explanation = fl.explain(flagged(name), batch=ZOO[name].batch(), microbatches=2)
    assert max(map(len, str(explanation).splitlines())) <= 80
    document = json.loads(json.dumps(explanation.to_dict(), allow_nan=False))
    jsonschema.validate(document, SCHEMA)


def test_twenty_thousand_modules_in_a_page() -> None:
    blocks = [
        nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Dropout(0.1)) for _ in range(5000)
    ]
    net = nn.Sequential(*blocks)
    text = str(fl.explain(net))
    assert len(text.splitlines()) < 40
    assert "4,999 like it" in text


def test_hostile_names_are_escaped() -> None:
    net = nn.Module()
    net.add_module("<script>alert(1)</script>", nn.BatchNorm1d(1))
    page = fl.explain(net)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda net: fl.explain(net.parameters()), TypeError, "nn.Module"),
        (lambda net: fl.explain(net, "trunc"), SelectionError, "trunk"),
        (lambda net: fl.explain(net, microbatches=0), ValueError, "1 or more"),
        (lambda net: fl.explain(net, microbatches=2.0), TypeError, "microbatches=8"),
        (
            lambda net: fl.explain(net, microbatches=8, batch=torch.randn(4, 1, 8, 8)),
            BatchError,
            "holds 4 samples; expected 8 or more",
        ),
        (
            lambda net: fl.explain(net, batch=torch.randn(4, 2)),
            BatchError,
            r"model\(batch\) raised",
        ),
        (
            lambda net: fl.explain(net, batch=torch.utils.data.DataLoader([1, 2])),
            TypeError,
            r"next\(iter\(loader\)\)",
        ),
        (lambda net: fl.explain(net, microbatches=2, batch="text"), BatchError, "no tensor"),
    ],
)
def test_bad_input_is_answered(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(ZOO["two_branches"].build())


ODD: dict[str, tuple[Any, str]] = {
    "lazy": (lambda: nn.Sequential(nn.LazyBatchNorm1d()), "Call the model once"),
    "scripted": (
        lambda: torch.jit.script(nn.Sequential(nn.BatchNorm1d(3))),
        "before it is scripted",
    ),
    "meta": (lambda: nn.Sequential(nn.BatchNorm1d(3, device="meta")), "load its weights first"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_run_is_explained_without_a_run(kind: str) -> None:
    make, says = ODD[kind]
    model = make()
    (row,) = fl.explain(model).rows
    assert [write.tensor for write in row.behaviour.now.writes] == [
        "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip
    with pytest.raises(BatchError, match=says):
        fl.explain(model, batch=torch.randn(4, 3), microbatches=2)


def test_a_norm_that_is_called_by_keyword_has_figures() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = live(nn.BatchNorm1d(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)

    (found,) = fl.explain(Named(), microbatches=2, batch=torch.randn(8, 3)).accumulated
    assert found.error is not None
    assert found.error < 1e-5
