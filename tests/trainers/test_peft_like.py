"""Adapters, prompts, adversaries and detectors: bases that are frozen while others train through.

The LoRA of this file is written by hand, the way PEFT does it; PEFT itself is driven where it is
installed.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import FrostlineWarning
from tests.everything import contents
from tests.zoo import ZOO, Entry


class Lora(nn.Module):
    """PEFT's shape: the wrapped layer is `base_layer`, the adapters hang in dictionaries."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.1)})

    def forward(self, x: Tensor) -> Tensor:
        low = self.lora_A["default"](self.lora_dropout["default"](x))
        return self.base_layer(x) + self.lora_B["default"](low)


def add_lora(model: nn.Module) -> nn.Module:
    """Wrap every Linear of the model and freeze the rest by flag, as get_peft_model does."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, Lora(module))
    return model


def train(model: nn.Module, entry: Entry, steps: int = 3) -> set[str]:
    before = contents(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        entry.loss(model, entry.batch()).backward()
        optimizer.step()
    after = contents(model)
    return {name for name in before if before[name] != after[name]}


# --- LoRA ----------------------------------------------------------------------------------------


def test_lora_control_by_flag_only() -> None:
    model = add_lora(ZOO["mlp_bn1d"].build())
    drifted = {n for n in train(model, ZOO["mlp_bn1d"]) if "lora" not in n}
    assert {n.rpartition(".")[2] for n in drifted} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize("name", ["mlp_bn1d", "hf_vit", "bert"])
def test_lora_with_flagged_and_follow(name: str) -> None:
    model = add_lora(ZOO[name].build())
    part = fl.freeze(model, fl.FLAGGED, mode="follow")
    moved = train(model, ZOO[name])
    assert moved
    assert all("lora" in tensor for tensor in moved)
    assert part.ok
    # The base's dropout goes on, which adapters are trained with.
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert all(m.training for m in dropouts)


@pytest.mark.parametrize("mode", ["eval", "follow"])
def test_adapters_follow_train_and_the_dropout_of_the_base_follows_the_switch(mode: Any) -> None:
    model = add_lora(ZOO["hf_vit"].build())
    fl.freeze(model, exclude=["**.lora_A", "**.lora_B"], mode=mode)
    model.train()
    adapters = [m for m in model.modules() if isinstance(m, Lora)]
    assert all(m.training and m.lora_A["default"].training for m in adapters)
    own = {id(m.lora_dropout["default"]) for m in adapters}
    others = [m for m in model.modules() if isinstance(m, nn.Dropout) and id(m) not in own]
    assert others
    assert {m.training for m in others} == {mode == "follow"}


def test_lora_by_a_selector_written_for_the_base() -> None:
    """`base_layer` is no part of a name: the selector of the plain model still means the same."""
    plain, adapted = ZOO["mlp_bn1d"].build(), add_lora(ZOO["mlp_bn1d"].build())
    before = fl.freeze(plain, "backbone")
    after = fl.freeze(adapted, "backbone", exclude=["**.lora_A", "**.lora_B"], mode="follow")
    assert set(before.tensors) == set(after.tensors)
    assert fl.manifest(before).root == fl.manifest(after).root


def test_merging_an_adapter_is_named() -> None:
    model = add_lora(ZOO["mlp_bn1d"].build())
    part = fl.freeze(model, fl.FLAGGED, mode="follow")
    train(model, ZOO["mlp_bn1d"])
    layer = model.head
    with torch.no_grad():
        layer.base_layer.weight += layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert [(c.name, c.kind) for c in part.changes()] == [("head.weight", "value")]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_itself() -> None:
    peft = pytest.importorskip("peft")
    model = ZOO["hf_resnet"].build()
    config = peft.LoraConfig(r=2, target_modules=["convolution"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(model, config)
    control = copy.deepcopy(adapted)
    entry = ZOO["hf_resnet"]
    drifted = {n for n in train(control, entry) if "running" in n}
    assert drifted
    part = fl.freeze(adapted, fl.FLAGGED, mode="follow")
    moved = train(adapted, entry)
    assert part.ok
    assert all("lora" in n or "modules_to_save" in n for n in moved)
    assert moved
    # Names of the base are those that the model had before PEFT came.
    plain = {n for n, _ in ZOO["hf_resnet"].build(steps=0).named_parameters()}
    assert set(part.tensors) & plain


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_summary_tells_the_copy_that_trains_from_the_original() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["convolution"], modules_to_save=["classifier"])
    adapted = peft.get_peft_model(ZOO["hf_resnet"].build(), config)
    states = {row.name: row.state for row in fl.summary(adapted).rows if "classifier" in row.name}
    assert states["classifier.original_module"] == "frozen"
    assert states["classifier.modules_to_save.default"] == "trainable"
    assert states["classifier"] == "mixed"


# --- prompt tuning -------------------------------------------------------------------------------


class Prompted(nn.Module):
    """Trainable vectors before the embedded tokens of a frozen language model."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.prompt = nn.Parameter(torch.randn(3, 16) * 0.1)

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> Any:
        tokens = self.base.get_input_embeddings()(input_ids)
        prompt = self.prompt.expand(len(input_ids), -1, -1)
        ignored = labels.new_full((len(labels), 3), -100)
        return self.base(
            inputs_embeds=torch.cat([prompt, tokens], 1), labels=torch.cat([ignored, labels], 1)
        )


@pytest.mark.parametrize("mode", ["eval", "follow"])
def test_prompt_tuning(mode: Any) -> None:
    model = Prompted(ZOO["gpt2"].build())
    part = fl.freeze(model, "base", mode=mode)
    entry = ZOO["gpt2"]
    batch = entry.batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    before = contents(model)
    batch["input_ids"], batch["labels"] = batch["input_ids"][:, :10], batch["labels"][:, :10]
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        model(batch["input_ids"], batch["labels"]).loss.backward()
        optimizer.step()
    after = contents(model)
    assert {n for n in before if before[n] != after[n]} == {"prompt"}
    assert part.ok
    dropouts = [m for m in model.base.modules() if isinstance(m, nn.Dropout)]
    assert {m.training for m in dropouts} == {mode == "follow"}


# --- a GAN ---------------------------------------------------------------------------------------


def discriminator() -> nn.Module:
    net = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)),
        nn.BatchNorm1d(8),
        nn.LeakyReLU(0.2),
        nn.Dropout(0.1),
        nn.Linear(8, 1),
    )
    net[1].running_mean.uniform_(-1, 1)
    net[1].num_batches_tracked.fill_(4)
    return net


def _adversarial(logits: Tensor, real: bool) -> Tensor:
    target = torch.full_like(logits, float(real))
    return nn.functional.binary_cross_entropy_with_logits(logits, target)


def test_a_discriminator_is_held_around_the_generators_step_only() -> None:
    d, g = discriminator(), nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6))
    d_opt = torch.optim.Adam(d.parameters(), lr=0.01, betas=(0.5, 0.9))
    g_opt = torch.optim.Adam(g.parameters(), lr=0.01, betas=(0.5, 0.9))
    d.train()
    classes = [type(m) for m in d.modules()]
    for _ in range(3):
        start = contents(d)
        d_opt.zero_grad()
        real, fake = torch.randn(8, 6), g(torch.randn(8, 3)).detach()
        (_adversarial(d(real), True) + _adversarial(d(fake), False)).backward()
        d_opt.step()
        trained = contents(d)
        # D trains in between: every weight, every statistic, the vectors of the spectral norm.
        assert {n for n in start if start[n] == trained[n]} == set()

        generator = contents(g)
        gradients = [p.grad for p in d.parameters()]
        g_opt.zero_grad()
        with fl.freeze(d, stats="batch", mode="follow") as part:
            _adversarial(d(g(torch.randn(8, 3))), True).backward()
            g_opt.step()
            assert all(p.grad is None for p in d.parameters())
            assert part.ok
        assert contents(d) == trained
        assert all(a != b for a, b in zip(generator.values(), contents(g).values(), strict=True))
        assert all(p.requires_grad for p in d.parameters())
        assert all(p.grad is old for p, old in zip(d.parameters(), gradients, strict=True))
        assert all(m.training for m in d.modules())
        assert [type(m) for m in d.modules()] == classes
    assert fl.parts(d) == []


def test_control_the_generators_step_moves_the_discriminator() -> None:
    """By flag only: the statistics and the spectral norm's vectors move in G's step."""
    d = discriminator().train().requires_grad_(False)
    before = contents(d)
    d(torch.randn(8, 6))
    after = contents(d)
    moved = {n.rpartition(".")[2] for n in before if before[n] != after[n]}
    assert moved == {"running_mean", "running_var", "num_batches_tracked", "_u", "_v"}


def test_the_discriminator_judges_by_the_batch() -> None:
    """`stats="batch"` gives the numbers of training, bit for bit, dropout aside."""
    d = discriminator()
    d[3].p = 0.0
    x = torch.randn(8, 6)
    expected = copy.deepcopy(d)
    expected[0].eval()  # the vectors of the spectral norm are held
    with fl.freeze(d, stats="batch", mode="follow"):
        d.train()
        held = d(x)
    assert torch.equal(held, expected(x))
    assert not torch.equal(held, discriminator().eval()(x))


def test_both_directions_at_once() -> None:
    """D frozen for G's loss through one shared graph: G's gradients equal the flag-only ones."""
    d, g = discriminator(), nn.Linear(3, 6)
    d[3].p = 0.0
    z = torch.randn(8, 3)
    control_d, control_g = copy.deepcopy(d).requires_grad_(False).train(), copy.deepcopy(g)
    control_d[0].eval()
    _adversarial(control_d(control_g(z)), True).backward()
    with fl.freeze(d, stats="batch", mode="follow"):
        d.train()
        _adversarial(d(g(z)), True).backward()
    for parameter, expected in zip(g.parameters(), control_g.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)


# --- detectors -----------------------------------------------------------------------------------


class Detector(nn.Module):
    """torchvision's contract: losses in training, boxes in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.backbone[1].num_batches_tracked.fill_(5)
        self.backbone[1].running_mean.uniform_(-1, 1)
        self.rpn = Proposals()
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        features = self.backbone(images).mean((2, 3))
        boxes, losses = self.rpn(features, targets)
        if self.training:
            return losses | {"class": self.head(boxes).square().mean()}
        return {"boxes": boxes}


class Proposals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(4, 4)

    def forward(
        self, features: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        boxes = self.conv(features)
        return boxes, {"objectness": boxes.square().mean()} if self.training else {}


IMAGES = (2, 3, 8, 8)


def test_a_held_detector_part_warns_that_it_returns_something_else() -> None:
    model = Detector()
    with pytest.warns(FrostlineWarning, match=r"rpn: returns something else in eval mode") as seen:
        part = fl.freeze(model, "rpn")
    assert len(seen) == 1
    assert 'fl.freeze(..., mode="follow")' in str(seen[0].message)
    assert "it takes targets" in " ".join(str(part).split())
    # And it says the truth: one loss is gone.
    model.train()
    assert set(model(torch.randn(IMAGES))) == {"class"}


def test_follow_keeps_what_a_detector_returns() -> None:
    model = Detector()
    part = fl.freeze(model, "rpn", mode="follow")
    model.train()
    losses = model(torch.randn(IMAGES))
    assert set(losses) == {"objectness", "class"}
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.rpn.parameters())
    assert part.ok


def test_the_backbone_of_a_detector_needs_no_word() -> None:
    model = Detector()
    part = fl.freeze(model, "backbone")
    model.train()
    assert set(model(torch.randn(IMAGES))) == {"objectness", "class"}
    assert part.ok


def test_a_detector_with_something_trainable_is_not_held_in_eval() -> None:
    model = Detector()
    fl.freeze(model, exclude="head", mode="follow")
    model.train()
    assert set(model(torch.randn(IMAGES))) == {"objectness", "class"}
