"""Modules whose eval mode is not enough, against what torch itself computes in eval."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from tests.freezing.actions import map_over_batches
from tests.freezing.kinds import KINDS, FirstOutput, build

# --- embeddings with max_norm ----------------------------------------------------------------

NORM = 1.1
IDS = {
    "1-D": torch.tensor([1, 5, 1, 0, 9]),
    "2-D": torch.tensor([[1, 5], [1, 0], [9, 3]]),
    "3-D": torch.tensor([[[1], [5]], [[2], [0]]]),
    "0-D": torch.tensor(4),
    "none": torch.zeros(0, dtype=torch.long),
    "int32": torch.tensor([[1, 5], [1, 0]], dtype=torch.int32),
}


def embedding(**options: Any) -> nn.Embedding:
    layer = nn.Embedding(10, 4, max_norm=NORM, **options)
    norms = layer.weight.norm(dim=1)
    assert (norms > NORM).any()
    assert (norms < NORM).any()
    return layer


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}, {"norm_type": 1.0}], ids=str)
def test_embedding_equals_torchs_own_look_up(ids: str, options: dict[str, Any]) -> None:
    layer = embedding(**options)
    own = copy.deepcopy(layer)
    before = layer.weight.detach().clone()
    # Its first: the second renormalises again, by rounding.
    expected = own(IDS[ids])
    fl.freeze(layer)
    for mode in (True, False):
        layer.train(mode)
        assert torch.equal(layer(IDS[ids]), expected)
    assert torch.equal(layer.weight, before)
    # Near miss: torch's own wrote to its table.
    assert torch.equal(own.weight, before) is (ids == "none")


def test_embedding_without_max_norm_keeps_its_class() -> None:
    layer = nn.Embedding(4, 2)
    fl.freeze(layer)
    assert type(layer) is nn.Embedding


def test_head_tied_to_the_embedding_is_unchanged() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = embedding()
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids))

    net, probe = Tied(), torch.randn(3, 4)
    control = copy.deepcopy(net)
    before = net.head(probe)
    part = fl.freeze(net, ["embed", "head"])
    net.train()(IDS["2-D"])
    assert torch.equal(net.head(probe), before)
    assert part.ok
    control.requires_grad_(False)(IDS["2-D"])
    assert not torch.equal(control.head(probe), before)


@pytest.mark.parametrize(
    ("mode", "weighted"),
    # torch weighs sums only.
    [("sum", False), ("sum", True), ("mean", False), ("max", False)],
)
@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("shape", ["2-D", "offsets", "offsets with the last"])
def test_embedding_bag_equals_torchs_own(
    mode: str, padding: int | None, shape: str, weighted: bool
) -> None:
    last = shape == "offsets with the last"
    layer = nn.EmbeddingBag(
        10, 4, max_norm=NORM, mode=mode, padding_idx=padding, include_last_offset=last
    )
    own = copy.deepcopy(layer)
    before = layer.weight.detach().clone()
    arguments: list[Any] = [torch.tensor([[1, 5, 1], [0, 1, 9], [2, 2, 2]]), None, None]
    if shape != "2-D":
        # The middle bag is empty, and row 1 (the padding) is in the first and the last.
        arguments = [torch.tensor([1, 5, 1, 0, 9]), torch.tensor([0, 3, 3]), None]
        if last:
            arguments[1] = torch.tensor([0, 3, 3, 5])
    if weighted:
        arguments[2] = torch.rand(arguments[0].shape)
    fl.freeze(layer)
    layer.train()
    assert torch.equal(layer(*arguments), own(*arguments))
    assert torch.equal(layer.weight, before)
    assert not torch.equal(own.weight, before)


def test_embedding_bag_weights_get_gradients() -> None:
    layer = nn.EmbeddingBag(10, 4, max_norm=NORM, mode="sum")
    own = copy.deepcopy(layer).requires_grad_(False)
    ids = torch.tensor([[1, 5, 1], [0, 1, 9]])
    fl.freeze(layer)
    grads = []
    for module in (layer, own):
        weights = torch.ones(2, 3, requires_grad=True)
        module(ids, per_sample_weights=weights).square().sum().backward()
        grads.append(weights.grad)
    assert torch.equal(grads[0], grads[1])


# --- observers and fake quantisation -------------------------------------------------------------


def seen(observer: nn.Module) -> nn.Module:
    """Run it in training, so that it has a range, then hand out values beyond that range."""
    observer(torch.linspace(-1, 1, 12).view(3, 4))
    return observer


BEYOND = torch.linspace(-3, 5, 12).view(3, 4)


@pytest.mark.parametrize(
    "name",
    [
        "MinMaxObserver",
        "MovingAverageMinMaxObserver",
        "PerChannelMinMaxObserver",
        "HistogramObserver",
        "PlaceholderObserver",
    ],
)
def test_observer_hands_through_and_records_nothing(name: str) -> None:
    observer = seen(getattr(torch.ao.quantization, name)())
    control = copy.deepcopy(observer)
    before = {k: v.clone() for k, v in observer.state_dict().items()}
    part = fl.freeze(observer)
    assert observer.train()(BEYOND) is BEYOND
    assert list(observer.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in observer.state_dict().items())
    assert part.changes() == []
    control.eval()(BEYOND)
    moved = any(not torch.equal(v, before[k]) for k, v in control.state_dict().items())
    assert moved is bool(before)


@pytest.mark.parametrize("name", ["FakeQuantize", "FusedMovingAvgObsFakeQuantize"])
@pytest.mark.parametrize("mode", ["eval", "follow"])
@pytest.mark.parametrize("on", [True, False], ids=["quantising", "not quantising"])
def test_fake_quantisation_goes_on_with_its_observer_off(name: str, mode: str, on: bool) -> None:
    fake = seen(getattr(torch.ao.quantization, name)())
    if not on:
        fake.disable_fake_quant()
    own = copy.deepcopy(fake)
    own.disable_observer()
    before = {k: v.clone() for k, v in fake.state_dict().items()}
    part = fl.freeze(fake, mode=mode)
    x = BEYOND.clone().requires_grad_()
    out = fake.train()(x)
    assert torch.equal(out, own(BEYOND))
    assert torch.equal(out, BEYOND) is not on
    out.sum().backward()  # the straight-through gradient is there: 0 beyond the range, else 1
    assert x.grad is not None
    assert set(x.grad.unique().tolist()) == ({0.0, 1.0} if on else {1.0})
    assert all(torch.equal(v, before[k]) for k, v in fake.state_dict().items())
    assert fake.state_dict()["observer_enabled"].tolist() == [1]
    assert part.changes() == []
    part.undo()
    assert fake.observer_enabled.tolist() == [1]
    fake.enable_fake_quant()
    fake.train()(BEYOND * 2)
    assert not torch.equal(fake.state_dict()["scale"], before["scale"])


@pytest.mark.parametrize("switch", ["disable_observer", "enable_observer"])
def test_observer_switch_is_ignored_while_held_and_counted(switch: str) -> None:
    fake = seen(torch.ao.quantization.FakeQuantize())
    part = fl.freeze(fake)
    getattr(fake, switch)()
    assert part.changes() == []
    (call,) = part.ignored_calls
    assert (call.what, call.count) == ("enable_observer()", 1)
    assert __file__ in call.caller
    part.undo()
    assert fake.observer_enabled.tolist() == [1]
    fake.disable_observer()
    assert fake.observer_enabled.tolist() == [0]


def test_quantisation_switched_off_while_held_is_named() -> None:
    fake = seen(torch.ao.quantization.FakeQuantize())
    part = fl.freeze(fake)
    fake.disable_fake_quant()
    assert [(c.name, c.kind) for c in part.changes()] == [("fake_quant_enabled", "value")]


# --- vmap ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k, kind in KINDS.items() if kind.vmap])
def test_vmap_equals_a_loop(kind: str) -> None:
    net, x = build(kind), KINDS[kind].inputs()
    part = fl.freeze(net, "part")
    with torch.no_grad():
        hidden = torch.stack([net.stem(x), net.stem(x.flip(0))])
        expected = torch.stack([net.train().part(h) for h in hidden])
        torch.testing.assert_close(map_over_batches(net.part, hidden), expected)
    assert part.changes() == []


# --- recurrent nets --------------------------------------------------------------------------

RNNS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}


def rnn(kernel: str) -> nn.RNNBase:
    options = {"nonlinearity": kernel[4:]} if kernel.startswith("rnn_") else {}
    return RNNS[kernel](3, 4, num_layers=2, dropout=0.5, **options)


class KernelSpy:
    """Notes (train, dropout) that the real kernel was called with."""

    def __init__(self, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[bool, float]] = []
        real = getattr(torch._VF, kernel)

        def spy(*args: Any) -> Any:
            # (input, hx, weights, bias, layers, dropout, train, bidirectional, batch_first)
            self.calls.append((args[6], args[5]))
            return real(*args)

        monkeypatch.setattr(torch._VF, kernel, spy)
        if kernel.startswith("rnn_"):
            monkeypatch.setitem(nn.modules.rnn._rnn_impls, kernel.upper(), spy)


@pytest.mark.parametrize("kernel", RNNS)
def test_kernel_is_told_to_train_only_where_the_input_needs_a_gradient(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = rnn(kernel), torch.randn(5, 2, 3)
    plain = copy.deepcopy(layer).eval()
    part = fl.freeze(layer)
    layer.train()
    expected, _ = plain(x)
    spy = KernelSpy(kernel, monkeypatch)
    leaf = x.clone().requires_grad_()
    held, _ = layer(leaf)
    unneeded, _ = layer(x)
    with torch.no_grad():
        layer(leaf)
    # cuDNN has no backward in eval mode; with dropout 0 the numbers are those of eval.
    assert spy.calls == [(True, 0.0), (False, 0.5), (False, 0.5)]
    assert torch.equal(held, expected)
    assert torch.equal(unneeded, expected)
    held.square().sum().backward()
    assert leaf.grad is not None
    assert layer.training is False
    assert layer.dropout == 0.5
    assert part.changes() == []


def test_kernel_is_told_to_train_where_the_state_needs_a_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = rnn("lstm"), torch.randn(5, 2, 3)
    fl.freeze(layer)
    spy = KernelSpy("lstm", monkeypatch)
    hidden = torch.zeros(2, 2, 4, requires_grad=True)
    layer(x, (hidden, torch.zeros(2, 2, 4)))
    layer(x, (hidden.detach(), torch.zeros(2, 2, 4)))
    assert spy.calls == [(True, 0.0), (False, 0.5)]


def test_kernel_control_unheld_is_asked_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = rnn("gru"), torch.randn(5, 2, 3)
    part = fl.freeze(layer)
    part.undo()
    spy = KernelSpy("gru", monkeypatch)
    layer.train()(x)
    layer.eval()(x.requires_grad_())
    assert spy.calls == [(True, 0.5), (False, 0.5)]


def test_gradients_through_a_frozen_rnn_equal_those_in_eval() -> None:
    layer, x = rnn("lstm"), torch.randn(5, 2, 3)
    plain = copy.deepcopy(layer).eval().requires_grad_(False)
    fl.freeze(layer)
    grads = []
    for module in (layer.train(), plain):
        leaf = x.clone().requires_grad_()
        module(leaf)[0].square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])


# --- the fast path of transformers -----------------------------------------------------------


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)


FAST = {
    "TransformerEncoderLayer": encoder_layer,
    "TransformerEncoder": lambda: nn.TransformerEncoder(encoder_layer(), 2),
    "MultiheadAttention": lambda: FirstOutput(
        nn.MultiheadAttention(8, 2, 0.3, batch_first=True), masks=True
    ),
}
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1)
MASKS: dict[str, dict[str, Tensor]] = {
    "no mask": {},
    "padding": {"src_key_padding_mask": PADDING},
    "causal": {"causal": CAUSAL},
    "both": {"src_key_padding_mask": PADDING, "causal": CAUSAL},
}


def call(name: str, module: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    padding, causal = masks.get("src_key_padding_mask"), masks.get("causal")
    if name == "MultiheadAttention":
        inner = module.module_
        out: Tensor = inner(x, x, x, key_padding_mask=padding, attn_mask=causal)[0]
        return out
    key = "src_mask" if name == "TransformerEncoderLayer" else "mask"
    out = module(x, src_key_padding_mask=padding, **{key: causal})
    return out


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", FAST)
def test_output_is_bit_identical_without_gradients(name: str, masks: str) -> None:
    net, x = FAST[name]().eval(), torch.randn(3, 5, 8)
    with torch.no_grad():
        before = call(name, net, x, MASKS[masks])
        part = fl.freeze(net)
        held = call(name, net.train(), x, MASKS[masks])
        part.undo()
        after = call(name, net.eval(), x, MASKS[masks])
    assert torch.equal(held, before)
    assert torch.equal(after, before)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("input_needs", [True, False], ids=["leaf", "plain"])
def test_output_with_gradients_is_that_of_the_slow_path(
    name: str, masks: str, input_needs: bool
) -> None:
    net, x = FAST[name]().eval(), torch.randn(3, 5, 8, requires_grad=input_needs)
    before = call(name, net, x, MASKS[masks])
    slow = copy.deepcopy(net).requires_grad_(False)
    part = fl.freeze(net)
    held = call(name, net.train(), x, MASKS[masks])
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert torch.equal(held, call(name, slow, x, MASKS[masks]))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    # Not bit for bit: at::matmul folds batches or not by requires_grad, so sums are reordered.
    torch.testing.assert_close(held, before, rtol=1e-5, atol=2e-6)
    part.undo()
    assert torch.equal(call(name, net.eval(), x, MASKS[masks]), before)


def test_fast_path_control_the_flag_alone_changes_padded_positions() -> None:
    net, x = FAST["TransformerEncoderLayer"]().eval(), torch.randn(3, 5, 8)
    before = call("TransformerEncoderLayer", net, x, MASKS["padding"])
    net.requires_grad_(False)
    after = call("TransformerEncoderLayer", net, x, MASKS["padding"])
    assert not torch.equal(before, after)


def test_layer_that_was_frozen_by_flag_before_keeps_the_fast_path() -> None:
    net = FAST["TransformerEncoderLayer"]().eval().requires_grad_(False)
    x = torch.randn(3, 5, 8)
    before = call("TransformerEncoderLayer", net, x, MASKS["padding"])
    fl.freeze(net)
    assert torch.equal(call("TransformerEncoderLayer", net, x, MASKS["padding"]), before)


def test_fast_path_is_switched_back_after_an_exception() -> None:
    net = encoder_layer()
    fl.freeze(net)
    with pytest.raises(AssertionError):
        net(torch.randn(3, 5, 7))
    assert torch.backends.mha.get_fastpath_enabled()
