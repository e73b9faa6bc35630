"""Activation checkpointing goes on saving memory while the part is held in eval mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import frostline as fl
from tests.freezing.content import content, moved
from tests.zoo import ZOO, seeded

# Still what most scripts call.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
)

# Model -> the part with the checkpointed layers, below which something trains.
PARTS = {
    "hf_vit": "vit.layers",
    "bert": "bert.encoder",
    "gpt2": "transformer.h",
    "t5": "encoder.block",
    "wav2vec2": "wav2vec2.encoder",
    "vit_tiny": "blocks",
    "convnext": "stages",
    "resnet18": "layer[1-4]",
}
TRANSFORMERS = list(PARTS)[:5]
TIMM = list(PARTS)[5:]


def switch_on(model: Any, reentrant: bool | None) -> None:
    if reentrant is None:
        model.set_grad_checkpointing(True)
    else:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": reentrant}
        )


def saved_bytes(compute: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Bytes that autograd keeps for the backward, each storage once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Kept alive, so that no address is used twice.
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute()
    return sum(t.untyped_storage().nbytes() for t in kept.values()), loss


@dataclass
class Run:
    saved: int
    model: nn.Module
    gradients: dict[str, Tensor]
    loss: Tensor


def run(name: str, how: str, reentrant: bool | None, checkpointing: bool = True) -> Run:
    """One forward and backward: `how` is held, by flag in training mode, or by flag in eval."""
    entry = ZOO[name]
    model = entry.build(steps=0)
    if checkpointing:
        switch_on(model, reentrant)
    if how == "held":
        fl.freeze(model, PARTS[name])
    else:
        # The same tensors by flag only.
        part = fl.freeze(model, PARTS[name])
        frozen = [tensor for key, tensor in part.tensors.items() if tensor.is_floating_point()]
        part.undo()
        for tensor in frozen:
            tensor.requires_grad_(False)
    model.train(how != "by flag, eval")
    with seeded(4), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and transformers advise on use_reentrant
        saved, loss = saved_bytes(lambda: entry.loss(model, entry.batch()))
        loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return Run(saved, model, gradients, loss)


CASES = [(n, r) for n in TRANSFORMERS for r in (True, False)] + [(n, None) for n in TIMM]


@pytest.mark.parametrize(("name", "reentrant"), CASES, ids=[f"{n}-{r}" for n, r in CASES])
def test_held_layers_save_as_few_bytes_as_free_ones(name: str, reentrant: bool | None) -> None:
    held = run(name, "held", reentrant)
    free = run(name, "by flag", reentrant)
    without = run(name, "held", reentrant, checkpointing=False)
    assert held.saved == free.saved
    assert held.saved < 0.6 * without.saved, "checkpointing saves something in this model"
    assert held.gradients.keys() == free.gradients.keys()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "hf_vit"])
def test_gradients_through_held_checkpointed_layers_are_those_of_eval_mode(
    name: str, reentrant: bool
) -> None:
    entry = ZOO[name]

    def gradients(held: bool) -> dict[str, Tensor]:
        model = entry.build(steps=0)
        switch_on(model, reentrant)
        for key, module in model.named_modules():
            # Held dropout is off by itself; all other is switched off here.
            if isinstance(module, nn.Dropout) and not (held and key.startswith(PARTS[name])):
                module.p = 0.0
        if held:
            fl.freeze(model, PARTS[name])
        model.train()
        with seeded(4), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entry.loss(model, entry.batch()).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    held, plain = gradients(True), gradients(False)
    assert held
    for key, gradient in held.items():
        torch.testing.assert_close(gradient, plain[key], msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_dropout_stays_off_inside_held_checkpointed_layers(name: str) -> None:
    """The gate is open for the one question of the layer, and closed in its forward."""
    entry = ZOO[name]
    model = entry.build(steps=0)
    switch_on(model, False)
    part = fl.freeze(model, PARTS[name])
    model.train()
    seen: list[tuple[str, bool]] = []
    for key, module in part.modules.items():
        note = lambda m, _, key=key: seen.append((key, m.training))  # noqa: E731
        module.register_forward_pre_hook(note)
    before = content(model)
    with seeded(4), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry.loss(model, entry.batch()).backward()
    layers = {key for key, module in part.modules.items() if isinstance(module, nn.Dropout)}
    assert layers, "there is dropout in it"
    assert [key for key, training in seen if training and key in layers] == []
    assert moved(before, model) == []
    assert part.changes() == []


def test_a_gate_that_asks_training_itself_is_told() -> None:
    """A container that no registry knows stops checkpointing in eval mode: it warns, with a way."""

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gradient_checkpointing = True
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if self.gradient_checkpointing and self.training:
                return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)
            return self.layer(x)

    net = nn.Sequential(Stage())
    with pytest.warns(fl.errors.FrostlineWarning, match=r'will not checkpoint.*mode="follow"'):
        fl.freeze(net).undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fl.freeze(net, mode="follow")
    assert net.train()[0].training
