"""Lightning's Trainer: a fit with validation, on a ResNet-18 whose statistics have lived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from tests.everything import contents
from tests.zoo import ZOO, images, labelled

# Lightning says what is true: held modules are in eval mode when training starts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers:UserWarning"),
]

HEAD = {"net.fc.weight", "net.fc.bias"}


class Classifier(lightning.LightningModule):
    def __init__(self, backbone: str = "resnet18") -> None:
        super().__init__()
        self.net = ZOO[backbone].build()
        self.modes: list[bool] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        self.modes.append(self.net.training)
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.log("loss", nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def freeze_by_flag(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in HEAD)


def fit(module: lightning.LightningModule, folder: Path, epochs: int = 2) -> set[str]:
    """Fit, validating twice an epoch; the names of what moved."""
    data = torch.utils.data.DataLoader([labelled(4, 3, 32, 32)()] * 2, batch_size=None)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        val_check_interval=1,
        num_sanity_val_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = contents(module)
    trainer.fit(module, data, data)
    after = contents(module)
    return {name for name in before if before[name] != after[name]}


def test_control_by_flag_only_sixty_tensors_drift(tmp_path: Path) -> None:
    module = Classifier()
    freeze_by_flag(module)
    drifted = fit(module, tmp_path) - HEAD
    assert len(drifted) == 60
    assert all(
        name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in drifted
    )


def test_control_by_flag_and_eval_once_drifts_as_well(tmp_path: Path) -> None:
    """Lightning restores the modes after validation, and its fit begins in the modes it finds.

    Here the user's own line, `self.net.eval()`, is undone by their own `train()` each epoch.
    """

    class TrainsEachEpoch(Classifier):
        def on_train_epoch_start(self) -> None:
            self.train()

    module = TrainsEachEpoch()
    freeze_by_flag(module)
    module.net.eval()
    assert len(fit(module, tmp_path) - HEAD) == 60


def test_held_nothing_drifts(tmp_path: Path) -> None:
    module = Classifier()
    part = fl.freeze(module, "net", exclude="net.fc")
    assert fit(module, tmp_path) == HEAD
    assert part.ok
    assert all(module.modes)


def test_held_after_flags(tmp_path: Path) -> None:
    """The ten-minute answer to a script that froze by flags."""
    module = Classifier()
    freeze_by_flag(module)
    part = fl.freeze(module, fl.FLAGGED)
    assert fit(module, tmp_path) == HEAD
    assert part.ok


def test_the_mode_before_comes_back_after_a_fit(tmp_path: Path) -> None:
    module = Classifier()
    part = fl.freeze(module, "net", exclude="net.fc")
    fit(module, tmp_path, epochs=1)
    part.undo()
    assert all(m.training for m in module.modules())


def test_undo_after_a_fit(tmp_path: Path) -> None:
    module = Classifier()
    part = fl.freeze(module, "net", exclude="net.fc")
    fit(module, tmp_path, epochs=1)
    part.undo()
    assert {p.requires_grad for p in module.parameters()} == {True}
    module.train()
    assert all(m.training for m in module.modules())


def test_unfreezing_between_two_fits(tmp_path: Path) -> None:
    module = Classifier()
    part = fl.freeze(module, "net", exclude="net.fc")
    fit(module, tmp_path, epochs=1)
    thawed = fl.unfreeze(module, "net.layer4")
    assert thawed
    # Lightning's fit keeps the modes that it finds, so the thawed norms need the line.
    module.train()
    moved = fit(module, tmp_path, epochs=1)
    expected = {f"net.layer4.{name}" for name in contents(module.net.layer4)}
    assert moved == HEAD | expected
    assert part.ok


def test_batch_of_another_model(tmp_path: Path) -> None:
    """A transformers ResNet in a LightningModule: the same hold below another forward."""

    class Wrapped(Classifier):
        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.net(**images("pixel_values", 32)()).loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("loss", self.net(**images("pixel_values", 32)()).loss)

    module = Wrapped("hf_resnet")
    part = fl.freeze(module, "net.resnet")
    moved = fit(module, tmp_path)
    assert moved == {"net.classifier.1.weight", "net.classifier.1.bias"}
    assert part.ok
