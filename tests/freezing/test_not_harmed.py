"""What a freeze must not disturb: numbers, operations, names, objects, gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import frostline as fl
from tests.freezing import torch_layers
from tests.freezing.content import content, moved
from tests.zoo import ZOO, seeded

every_model = pytest.mark.parametrize("name", ZOO)
both_grad_modes = pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])


class Operations(TorchDispatchMode):
    """The names of the dispatched operations, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def loss_of(name: str, model: nn.Module, grad: bool) -> Tensor:
    with seeded(3), torch.set_grad_enabled(grad):
        return ZOO[name].loss(model, ZOO[name].batch()).detach()


def operations(name: str, model: nn.Module, grad: bool) -> list[str]:
    with Operations() as seen:
        loss_of(name, model, grad)
    return seen.names


# torch's own encoder: the flag alone would switch to the fused kernel, whose padded positions are
# zeros. Held, it goes on as it was, which is another sequence than the flag's.
KEEPS_ITS_PATH = {"transformer"}


@both_grad_modes
@every_model
def test_held_dispatches_what_plain_eval_does(name: str, grad: bool) -> None:
    plain, held = ZOO[name].build(), ZOO[name].build()
    # torch itself chooses some kernels by the flag, so the flags are the same on both sides.
    plain.requires_grad_(False).eval()
    fl.freeze(held)
    held.train()
    for model in (plain, held):
        # Caches of eval mode are filled, and a first forward of the unknown is compared.
        loss_of(name, model, grad)
    same = operations(name, held, grad) == operations(name, plain, grad)
    assert same == (not (grad and name in KEEPS_ITS_PATH))


@pytest.mark.parametrize("name", sorted(KEEPS_ITS_PATH))
def test_what_keeps_its_path_dispatches_what_it_did_before_the_freeze(name: str) -> None:
    model = ZOO[name].build().eval()
    before = operations(name, model, True)
    fl.freeze(model)
    after = operations(name, model, True)
    fused = "aten._transformer_encoder_layer_fwd.default"
    assert fused not in before
    assert fused not in after


@both_grad_modes
@every_model
def test_the_eval_output_is_the_same_before_during_and_after(name: str, grad: bool) -> None:
    model = ZOO[name].build().eval()
    before = loss_of(name, model, grad)
    part = fl.freeze(model)
    model.train()
    during = loss_of(name, model, grad)
    part.undo()
    model.eval()
    assert torch.equal(loss_of(name, model, grad), before)
    # On some processors torch's matmul rounds by the flag, even under no_grad: the control.
    by_flag = loss_of(name, model.requires_grad_(False), grad)
    assert torch.equal(during, before) or torch.equal(during, by_flag)
    torch.testing.assert_close(during, before, rtol=1e-6, atol=0)


# --- every layer of torch.nn -------------------------------------------------------------

# torch chooses a kernel by `requires_grad`: native cells with gradients enabled, and matmul, which
# folds dimensions by it, even under no_grad. The difference allowed is a few units in the last
# place of float32; a layer that is not listed here must give the same bytes.
BY_FLAG = {("GRU", True), ("RNN", True), ("Transformer", True), ("Transformer", False)}


def layer_outputs(layer: nn.Module, name: str, grad: bool) -> list[Tensor]:
    with torch.set_grad_enabled(grad), torch.random.fork_rng():
        torch.manual_seed(1)
        output = layer(*torch_layers.inputs(name))
    return [t.detach() for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    """0 if and only if the bytes are equal."""
    assert [t.shape for t in left] == [t.shape for t in right]
    if content(nn.ParameterList(left)) == content(nn.ParameterList(right)):
        return 0.0
    differ = [
        (a.double() - b.double()).abs().max().item() for a, b in zip(left, right, strict=True)
    ]
    return max(differ) or math.inf


@pytest.mark.parametrize("name", torch_layers.names())
def test_every_torch_layer_gives_the_same_eval_output(name: str) -> None:
    layer = torch_layers.build(name)
    before = {grad: layer_outputs(layer, name, grad) for grad in (False, True)}
    state = list(layer.state_dict())
    layer.train()
    with torch_layers.quiet_about_fresh_norms():
        part = fl.freeze(layer)
    layer.train()
    assert list(layer.state_dict()) == state
    for grad in (False, True):
        difference = largest_difference(layer_outputs(layer, name, grad), before[grad])
        assert difference <= (1e-6 if (name, grad) in BY_FLAG else 0)
    part.undo()
    layer.eval()
    for grad in (False, True):
        assert largest_difference(layer_outputs(layer, name, grad), before[grad]) == 0


# With gradients a held Transformer keeps the path that the flag alone would leave.
@pytest.mark.parametrize(("name", "grad"), sorted(BY_FLAG - {("Transformer", True)}))
def test_the_exceptions_are_those_of_the_flag_alone(name: str, grad: bool) -> None:
    """Not ours: the same bytes as with requires_grad=False and nothing else."""
    by_flag, held = torch_layers.build(name), torch_layers.build(name)
    held.load_state_dict(by_flag.state_dict())
    by_flag.requires_grad_(False)
    fl.freeze(held)
    held.train()
    outputs = [layer_outputs(layer, name, grad) for layer in (held, by_flag)]
    assert largest_difference(*outputs) == 0


@pytest.mark.parametrize("layers", ["encoder layer", "encoder", "attention"])
def test_padded_positions_do_not_become_zero_by_freezing(layers: str) -> None:
    """The fused kernel of torch's transformers becomes legal when no weight requires grad."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    module: nn.Module = {
        "encoder layer": layer,
        "encoder": nn.TransformerEncoder(layer, 2),
        "attention": nn.MultiheadAttention(8, 2, batch_first=True),
    }[layers]
    x = torch.randn(2, 4, 8)
    mask = torch.tensor([[False] * 4, [False, False, True, True]])

    def run() -> Tensor:
        if layers == "attention":
            return module(x, x, x, key_padding_mask=mask)[0].detach()
        return module(x, src_key_padding_mask=mask).detach()

    module.eval()
    before = run()
    part = fl.freeze(module)
    module.train()
    # matmul folds its dimensions by requires_grad, so the last bit may differ, as by the flag.
    torch.testing.assert_close(run(), before, rtol=0, atol=1e-6)
    if layers == "encoder":
        part.undo()
        module.requires_grad_(False).eval()
        assert (run()[1, 2:] == 0).all(), "control: by the flag alone"


# --- names and objects -------------------------------------------------------------------


@every_model
def test_state_dict_parameters_and_optimizer_stay(name: str) -> None:
    model = ZOO[name].build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    keys, before = list(model.state_dict()), content(model)
    parameters = [(key, id(p)) for key, p in model.named_parameters()]
    buffers = [(key, id(b)) for key, b in model.named_buffers()]
    modules = [(key, id(m), type(m).__name__) for key, m in model.named_modules()]
    text = repr(model)

    part = fl.freeze(model, ZOO[name].backbone, optimizer=optimizer)
    for _ in ("frozen", "undone"):
        assert list(model.state_dict()) == keys
        assert [(key, id(p)) for key, p in model.named_parameters()] == parameters
        assert [(key, id(b)) for key, b in model.named_buffers()] == buffers
        assert [(key, id(m), type(m).__name__) for key, m in model.named_modules()] == modules
        assert [id(p) for group in optimizer.param_groups for p in group["params"]] == given
        assert repr(model) == text
        assert moved(before, model) == []
        part.undo()


@every_model
def test_isinstance_and_undo_restore_every_class(name: str) -> None:
    model = ZOO[name].build()
    types = [type(m) for m in model.modules()]
    keys = [sorted(vars(m)) for m in model.modules()]
    part = fl.freeze(model)
    assert all(isinstance(m, t) for m, t in zip(model.modules(), types, strict=True))
    part.undo()
    assert [type(m) for m in model.modules()] == types
    assert [sorted(vars(m)) for m in model.modules()] == keys


# --- gradients through what is frozen ----------------------------------------------------


class Sandwich(nn.Module):
    """A frozen middle between two trainable layers."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 6), middle, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.first(x))
        return self.last(y[0] if isinstance(y, tuple) else y)


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 6),
    "norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(5), nn.Dropout(0.3)),
    "LSTM": lambda: nn.LSTM(6, 6, 2, dropout=0.3, batch_first=True),
    "GRU": lambda: nn.GRU(6, 6, 2, dropout=0.3, batch_first=True),
    "RNN": lambda: nn.RNN(6, 6, 2, dropout=0.3, batch_first=True),
    "encoder": lambda: nn.TransformerEncoderLayer(6, 2, 12, dropout=0.3, batch_first=True),
    "attention": lambda: SelfAttention(),
}


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("kind", MIDDLES)
def test_gradients_through_a_frozen_middle_are_those_of_the_flag(kind: str) -> None:
    held = Sandwich(MIDDLES[kind]())
    for module in held.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.num_batches_tracked.fill_(5)
    by_flag = copy.deepcopy(held)
    by_flag.middle.requires_grad_(False)
    fl.freeze(held, "middle")
    x = torch.randn(4, 5, 6)

    def gradients(model: Sandwich) -> dict[str, Tensor]:
        model.train()
        if model is by_flag:
            model.middle.eval()
        model(x).square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    mine, theirs = gradients(held), gradients(by_flag)
    assert list(mine) == ["first.weight", "first.bias", "last.weight", "last.bias"]
    for name, gradient in theirs.items():
        assert torch.equal(mine[name], gradient), name


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("needs", ["input requires grad", "input is data", "no_grad"])
def test_a_held_rnn_asks_its_kernel_for_train_mode_only_where_backward_needs_it(
    kind: str, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN refuses backward in eval mode; on a CPU only the arguments can show what is asked."""
    name = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[kind]
    kernel = getattr(torch._VF, name)
    asked: list[tuple[float, bool]] = []

    def spy(*args: Any) -> Any:
        # ..., has_biases, num_layers, dropout, train, bidirectional, batch_first
        asked.append((args[-4], args[-3]))
        return kernel(*args)

    monkeypatch.setattr(torch._VF, name, spy)
    module = MIDDLES[kind]()
    fl.freeze(module)
    module.train()
    x = torch.randn(4, 5, 6, requires_grad=needs != "input is data")
    with torch.set_grad_enabled(needs != "no_grad"):
        module(x)
    assert asked == [(0.0, True) if needs == "input requires grad" else (0.3, False)]
    assert not module.training
    assert module.dropout == 0.3


# --- modules with a train() of their own -------------------------------------------------


def test_levit_keeps_its_own_train_and_its_cache() -> None:
    """Its attention drops a cache of biases in train(True); held, it must neither break nor lie."""
    model = ZOO["levit"].build()
    part = fl.freeze(model, "stages")
    for _ in range(2):
        model.train()
        loss_of("levit", model, True)
        model.eval()
        loss_of("levit", model, False)
    assert part.changes() == []
    attentions = [m for m in model.modules() if hasattr(m, "attention_bias_cache")]
    assert attentions
    assert all(m.attention_bias_cache for m in attentions), "filled, as in eval mode"
    part.undo()
    model.train()
    assert all(not m.attention_bias_cache for m in attentions), "dropped, as its train() says"


def test_a_levit_loaded_anew_while_held_uses_the_new_biases() -> None:
    model, other = ZOO["levit"].build(), ZOO["levit"].build(seed=1)
    model.eval()
    loss_of("levit", model, False)
    part = fl.freeze(model)
    part.undo()
    model.train()
    model.load_state_dict(other.state_dict())
    fl.freeze(model)
    model.eval()
    other.eval().requires_grad_(False)  # on some processors matmul rounds by the flag
    assert torch.equal(loss_of("levit", model, False), loss_of("levit", other, False))
