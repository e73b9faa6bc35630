"""Where people freeze: before the weights come. Flags and hold are there afterwards, or it raises.

transformers builds on the meta device and puts new parameters in, Lightning's
`load_from_checkpoint` calls `__init__` and loads then, `assign=True` exchanges every tensor.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

import frostline as fl
from frostline.errors import FrozenStateChanged
from tests.everything import contents
from tests.zoo import ZOO, live

logging.set_verbosity_error()
logging.disable_progress_bar()

# Lightning says what is true: held modules are in eval mode when training starts.
pytestmark = pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode:UserWarning")


class Config(PretrainedConfig):
    model_type = "frostline-test"

    def __init__(self, freeze: str = "none", norms: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.freeze = freeze
        self.norms = norms


class Classifier(PreTrainedModel):
    """A backbone frozen in `__init__`: by nothing, by flag, or held."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        widths = [(12, 16), (16, 16), (16, 16)]
        norm = nn.BatchNorm1d if config.norms else lambda width: nn.ReLU()
        blocks = [nn.Sequential(nn.Linear(a, b), norm(b)) for a, b in widths]
        self.backbone = nn.Sequential(*blocks)
        self.head = nn.Linear(16, 5)
        if config.freeze == "flag":
            self.backbone.requires_grad_(False)
        elif config.freeze == "hold":
            fl.freeze(self, "backbone")
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: every weight is loaded."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def saved(folder: Path, norms: bool = True) -> Path:
    """A checkpoint of a model with a life behind it."""
    live(Classifier(Config(norms=norms))).save_pretrained(folder)
    return folder


def load(folder: Path, freeze: str, norms: bool = True) -> nn.Module:
    # Parameters on the meta device have no life yet, so freeze has nothing to warn of there.
    return Classifier.from_pretrained(folder, config=Config(freeze=freeze, norms=norms))


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(8, 12, generator=draw) + 1, torch.randint(5, (8,), generator=draw)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = batch()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def train(model: nn.Module, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        step(model, optimizer)


def frozen(before: dict[str, bytes], after: dict[str, bytes]) -> tuple[int, int]:
    """How many tensors of the backbone and of the rest are as they were."""
    same = [name for name in before if before[name] == after[name]]
    inside = sum(name.startswith("backbone") for name in same)
    return inside, len(same) - inside


# --- transformers --------------------------------------------------------------------------------


def test_control_flags_set_in_init_are_lost_by_from_pretrained(tmp_path: Path) -> None:
    model = load(saved(tmp_path), "flag")
    parameters = list(model.backbone.parameters())
    assert sum(p.requires_grad for p in parameters) == len(parameters) == 12
    before = contents(model)
    train(model)
    assert frozen(before, contents(model)) == (0, 0)


def test_control_on_the_resnet_of_transformers(tmp_path: Path) -> None:
    from transformers import ResNetForImageClassification

    class FrozenForImageClassification(ResNetForImageClassification):
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            self.resnet.requires_grad_(False)

    class HeldForImageClassification(ResNetForImageClassification):
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            fl.freeze(self, "resnet")

    ZOO["hf_resnet"].build().save_pretrained(tmp_path)
    by_flag = FrozenForImageClassification.from_pretrained(tmp_path)
    assert all(p.requires_grad for p in by_flag.parameters())
    held = HeldForImageClassification.from_pretrained(tmp_path)
    held.train()
    assert not any(p.requires_grad for p in held.resnet.parameters())
    assert not any(m.training for m in held.resnet.modules() if isinstance(m, nn.BatchNorm2d))
    before = contents(held)
    optimizer = torch.optim.AdamW(held.parameters(), lr=0.1)
    entry = ZOO["hf_resnet"]
    for _ in range(2):
        entry.loss(held, entry.batch()).backward()
        optimizer.step()
    after = contents(held)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {"classifier.1.weight", "classifier.1.bias"}


def test_freeze_in_init_then_from_pretrained(tmp_path: Path) -> None:
    model = load(saved(tmp_path), "hold")
    (part,) = fl.parts(model)
    before = contents(model)
    model.train()
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(not m[1].training for m in model.backbone)
    assert "frozen again" in " ".join(str(part).split())
    train(model)
    total = sum(name.startswith("backbone") for name in before)
    assert frozen(before, contents(model)) == (total, 0)


def test_the_weights_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert contents(load(folder, "hold")) == contents(load(folder, "none"))


def test_the_part_is_unsealed_on_meta_and_can_be_sealed(tmp_path: Path) -> None:
    model = load(saved(tmp_path), "hold")
    (part,) = fl.parts(model)
    if not part.sealed:
        part.seal()
    train(model)
    assert part.ok
    model.backbone[0][1].running_mean += 1
    assert not part.ok


def test_without_any_held_module_the_first_step_repairs(tmp_path: Path) -> None:
    """No module there reads `training`, so nobody is asked for a mode before the first step."""
    model = load(saved(tmp_path, norms=False), "hold", norms=False)
    before = contents(model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())
    step(model, optimizer)
    after = contents(model)
    assert frozen(before, after) == (6, 0)


def test_without_any_held_module_the_control_moves(tmp_path: Path) -> None:
    model = load(saved(tmp_path, norms=False), "flag", norms=False)
    before = contents(model)
    train(model, steps=1)
    assert frozen(before, contents(model)) == (0, 0)


# --- Lightning -----------------------------------------------------------------------------------


class Lit(lightning.LightningModule):
    """Frozen in `__init__`; the part hangs at its own module if `keep`."""

    def __init__(self, freeze: bool = True, keep: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = ZOO["mlp_bn1d"].make()
        if freeze:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "backbone.* never trained")
                part = fl.freeze(self.net, "backbone")
            if keep:
                self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        barebones=False,
        **options,
    )


def fit(module: Lit, folder: Path, **options: Any) -> lightning.Trainer:
    data = [batch() for _ in range(3)]
    made = trainer(folder, max_epochs=1, **options)
    made.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    return made


@pytest.mark.parametrize("keep", [False, True], ids=["not kept", "attribute of its own module"])
def test_load_from_checkpoint(tmp_path: Path, keep: bool) -> None:
    first = Lit(freeze=False)
    live(first)
    fit(first, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    module = Lit.load_from_checkpoint(tmp_path / "a.ckpt", freeze=True, keep=keep)
    assert not any(p.requires_grad for p in module.net.backbone.parameters())
    (part,) = fl.parts(module)
    # The seal was taken in __init__, before the weights came: the load is named.
    with pytest.raises(FrozenStateChanged, match=r"part\.seal\(\)"):
        part.assert_unchanged()
    part.seal()
    before = contents(module)
    fit(module, tmp_path)
    assert part.ok
    after = contents(module)
    assert {n for n in before if before[n] != after[n]} == {"net.head.weight", "net.head.bias"}


def test_a_part_in_a_lightning_checkpoint(tmp_path: Path) -> None:
    module = Lit(keep=True)
    fit(module, tmp_path).save_checkpoint(tmp_path / "b.ckpt")
    again = Lit.load_from_checkpoint(tmp_path / "b.ckpt")
    assert again.part.model is again.net
    assert fl.parts(again) == [again.part]
    assert contents(again) == contents(module)


def test_resuming_a_fit_from_a_checkpoint(tmp_path: Path) -> None:
    module = Lit()
    fit(module, tmp_path).save_checkpoint(tmp_path / "c.ckpt")
    resumed = Lit()
    data = torch.utils.data.DataLoader([batch() for _ in range(3)], batch_size=None)
    trainer(tmp_path, max_epochs=2).fit(
        resumed, data, ckpt_path=tmp_path / "c.ckpt", weights_only=False
    )
    (part,) = fl.parts(resumed)
    old, new = contents(module.net.backbone), contents(resumed.net.backbone)
    assert new == old
    assert {c.kind for c in part.changes()} == {"value"}
    part.seal()
    assert part.ok


# --- load_state_dict -----------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_load_state_dict(assign: bool) -> None:
    model, other = ZOO["mlp_bn1d"].build(), ZOO["mlp_bn1d"].build(seed=1)
    part = fl.freeze(model, "backbone")
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    assert not part.ok
    part.seal()
    before = contents(model)
    train(model)
    assert part.ok
    assert {n for n in before if before[n] != contents(model)[n]} == {"head.weight", "head.bias"}
    assert not any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize("name", ["mlp_bn1d", "resnet18"])
def test_trainable_parameters_put_in_place_of_frozen_ones(name: str) -> None:
    """What from_pretrained does, by hand; the next mode that is written sees it."""
    model = ZOO[name].build(steps=0)
    selector = ZOO[name].backbone
    part = fl.freeze(model, selector)
    for place in part.tensors:
        owner, _, attribute = place.rpartition(".")
        module = model.get_submodule(owner)
        if attribute in module._parameters:
            old = module._parameters[attribute]
            module._parameters[attribute] = nn.Parameter(old.detach().clone())
    model.train()
    covered = set(part.tensors)
    assert not any(p.requires_grad for n, p in model.named_parameters() if n in covered)
    assert part.ok


def test_a_flag_switched_on_by_hand_is_somebodys_wish() -> None:
    """The same object with its flag on is named and not undone."""
    model = ZOO["mlp_bn1d"].build()
    part = fl.freeze(model, "backbone")
    model.backbone[0].weight.requires_grad_(True)
    model.train()
    assert model.backbone[0].weight.requires_grad
    assert [(c.name, c.kind) for c in part.changes()] == [("backbone.0.weight", "requires_grad")]
