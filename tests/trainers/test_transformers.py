"""Hugging Face's Trainer, which calls `model.train()` at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PretrainedConfig, Trainer, TrainingArguments

import frostline as fl
from tests.everything import contents
from tests.zoo import ZOO, labelled

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")


class Images(Dataset):
    def __init__(self, name: str = "pixel_values") -> None:
        self.name = name
        self.inputs, self.labels = labelled(8, 3, 32, 32)()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {self.name: self.inputs[index], "labels": self.labels[index]}


class ResNet18(nn.Module):
    """timm's ResNet-18 with the loss inside, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ZOO["resnet18"].build()
        self.config = PretrainedConfig()

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(model: nn.Module, folder: Path, **options: Any) -> set[str]:
    """Two epochs with evaluation; the names of what moved."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        eval_strategy="epoch",
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        **options,
    )
    before = contents(model)
    Trainer(model, arguments, train_dataset=Images(), eval_dataset=Images()).train()
    after = contents(model)
    return {name for name in before if before[name] != after[name]}


HEAD = {"net.fc.weight", "net.fc.bias"}


def freeze_by_flag(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in HEAD)


def test_control_by_flag_only_sixty_tensors_drift(tmp_path: Path) -> None:
    model = ResNet18()
    freeze_by_flag(model)
    model.net.eval()  # undone by the Trainer's own train() at the first step
    drifted = train(model, tmp_path) - HEAD
    assert len(drifted) == 60
    assert not drifted & {name for name, _ in model.named_parameters()}


def test_held_nothing_drifts(tmp_path: Path) -> None:
    model = ResNet18()
    part = fl.freeze(model, "net", exclude="net.fc")
    assert train(model, tmp_path) == HEAD
    assert part.ok
    (call,) = part.ignored_calls
    assert call.what == "train()"
    # Every step and more: this is why the flag alone does not hold.
    assert call.count >= 4
    assert "transformers" in call.caller or "accelerate" in call.caller


def test_held_after_flags(tmp_path: Path) -> None:
    model = ResNet18()
    freeze_by_flag(model)
    part = fl.freeze(model, fl.FLAGGED)
    assert train(model, tmp_path) == HEAD
    assert part.ok


def test_the_resnet_of_transformers(tmp_path: Path) -> None:
    control = ZOO["hf_resnet"].build()
    control.resnet.requires_grad_(False)
    drifted = train(control, tmp_path)
    assert {name.rpartition(".")[2] for name in drifted if name.startswith("resnet.")} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    model = ZOO["hf_resnet"].build()
    part = fl.freeze(model, "resnet")
    assert train(model, tmp_path) == {"classifier.1.weight", "classifier.1.bias"}
    assert part.ok


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_options_of_the_trainer(tmp_path: Path, options: dict[str, Any]) -> None:
    model = ZOO["hf_resnet"].build()
    part = fl.freeze(model, "resnet")
    assert train(model, tmp_path, **options) == {"classifier.1.weight", "classifier.1.bias"}
    assert part.ok


def test_activation_checkpointing(tmp_path: Path) -> None:
    model = ZOO["hf_vit"].build()
    part = fl.freeze(model, "vit")
    moved = train(
        model,
        tmp_path,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": False},
    )
    assert moved
    assert not moved & set(part.tensors)
    assert part.ok


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    """What the Trainer saves has the keys and bytes that it would have without the hold."""
    model = ZOO["hf_resnet"].build()
    fl.freeze(model, "resnet")
    train(model, tmp_path)
    model.save_pretrained(tmp_path / "saved")
    plain = type(ZOO["hf_resnet"].make()).from_pretrained(tmp_path / "saved")
    assert contents(plain) == contents(model)
    assert all(p.requires_grad for p in plain.parameters())
    assert fl.parts(plain) == []
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)
    )
