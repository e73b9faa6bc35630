"""Models, batches and losses of which accumulation must give the big batch, and how they are cut.

Every model is in training mode with statistics that have lived, in float64 unless asked otherwise.
The microbatches of every case make the same calls of norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate as running_sum
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as trees

import frostline as fl
from tests import zoo_models, zoo_transformers
from tests.accumulation.exact import case_models as models
from tests.zoo import ask_for_loss, classify, classify_twice, live, seeded
from tests.zoo_batches import images, labelled
from tests.zoo_models import CLASSES

Batch = Any
Loss = Callable[[nn.Module, Batch], Tensor]


def _as_it_is(model: nn.Module) -> None: ...


@dataclass(frozen=True)
class Case:
    """A model and how its loss is computed.

    Attributes:
        name: for the reader.
        make: the model as its library initialises it.
        batch: the big batch, the same at every call, in float32.
        loss: `compute_loss(model, batch)`, a mean over the samples.
        prepare: what else its user does to it, after it has lived.
        unroll: turns activation checkpointing off, for the truth: torch itself updates the
            running statistics twice with it.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    loss: Loss = classify
    prepare: Callable[[nn.Module], None] = _as_it_is
    unroll: Callable[[nn.Module], None] = _as_it_is

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The model in training mode; the same weights at every call and in every dtype."""
        model = deepcopy(_made_once(self)).to(dtype)
        self.prepare(model)
        return model

    def big_batch(self, dtype: torch.dtype = torch.float64) -> Batch:
        """All samples; its tensors are leaves of their own at every call."""
        return each_tensor(partial(_as_leaf, dtype), self.batch())

    def __str__(self) -> str:
        return self.name


@cache
def _made_once(case: Case) -> nn.Module:
    with seeded(0):
        return live(case.make()).train()


def each_tensor(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """The batch with each of its tensors changed."""
    return trees.tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, batch)


def _as_leaf(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    kind = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(kind).clone().requires_grad_(tensor.requires_grad)


def chosen(batch: Batch, index: Tensor | slice) -> Batch:
    """Those samples, as leaves, in the memory format that they had."""
    return each_tensor(lambda t: t.detach()[index].clone().requires_grad_(t.requires_grad), batch)


def cut(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """Microbatches of these sizes."""
    ends = list(running_sum(sizes))
    return [chosen(batch, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def even(total: int, count: int) -> list[int]:
    """Sizes of `count` microbatches of `total` samples, as even as can be."""
    return [total // count + (i < total % count) for i in range(count)]


def size_of(batch: Batch) -> int:
    return tensors_of(batch)[0].shape[0]


def tensors_of(batch: Batch) -> list[Tensor]:
    return [x for x in trees.tree_leaves(batch) if isinstance(x, Tensor)]


# --- batches -----------------------------------------------------------------------------------

IMAGES = labelled(8, 3, 16, 16)
LARGER = labelled(8, 3, 32, 32)


def sixteen(pixels: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return labelled(16, 3, pixels, pixels)


def _maps() -> tuple[Tensor, Tensor]:
    inputs, _ = sixteen(16)()
    draw = torch.Generator().manual_seed(5)
    return inputs, torch.randint(CLASSES, (16, 16, 16), generator=draw)


def _real_and_fake() -> dict[str, Tensor]:
    real, _ = IMAGES()
    return {"real": real, "fake": real.flip(0).tanh() + 0.3}


def _image_and_row() -> dict[str, Tensor]:
    image, labels = IMAGES()
    row, _ = labelled(8, 6)()
    return {"image": image, "row": row, "label": labels}


def _channels_last() -> tuple[Tensor, Tensor]:
    inputs, labels = IMAGES()
    return inputs.contiguous(memory_format=torch.channels_last), labels


def _some_labelled_twice() -> tuple[Tensor, Tensor]:
    inputs, _ = IMAGES()
    return inputs, torch.tensor([1, 0, 1, 2, 3, 4, 0, 2])


def _attacked() -> tuple[Tensor, Tensor]:
    inputs, labels = IMAGES()
    return inputs.requires_grad_(), labels


# --- losses ------------------------------------------------------------------------------------


def tell_apart(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    real, fake = model(batch["real"]), model(batch["fake"])
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def two_inputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["image"], row=batch["row"]), batch["label"])


def with_auxiliary(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The second head's part is left out where no sample has a label for it."""
    images, labels = batch
    first, second = model(images)
    total, labelled_too = F.cross_entropy(first, labels), labels == 1
    if labelled_too.any():
        total = total + (second.square() * labelled_too).mean()
    return total


def distil_before(model: models.Distilled, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    with torch.no_grad():
        target = model.teacher(inputs)
    answer = model.student(inputs)
    return F.mse_loss(answer, target) + F.cross_entropy(answer, labels)


def distil_after(model: models.Distilled, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    answer = model.student(inputs)
    with torch.no_grad():
        target = model.teacher(inputs + 0.1)
    return F.mse_loss(answer, target) + F.cross_entropy(answer, labels)


# --- models ------------------------------------------------------------------------------------


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **arguments)

    return make


def _timm_resnet(block: str, *channels: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm.models import resnet

        layers = (1, 2, 1, 1)
        kind = getattr(resnet, block)
        return resnet.ResNet(kind, layers, num_classes=CLASSES, stem_width=8, channels=channels)

    return make


def _mobilenetv3() -> nn.Module:
    """Its kinds of blocks, once or twice each; squeeze and excitation, activation in the norm."""
    from timm.models import MobileNetV3
    from timm.models._efficientnet_builder import decode_arch_def

    blocks = [
        ["ds_r1_k3_s2_e1_c8_se0.25_nre"],
        ["ir_r1_k3_s2_e3_c12_nre", "ir_r1_k3_s1_e3_c12"],
        ["ir_r1_k5_s2_e4_c16_se0.25"],
        ["cn_r1_k1_s1_c24"],
    ]
    return MobileNetV3(
        decode_arch_def(blocks), CLASSES, num_features=32, stem_size=8, act_layer=nn.Hardswish
    )


def _standardised() -> nn.Module:
    """timm standardises weights by F.batch_norm: a norm in training mode that sees no sample."""
    from timm.layers import StdConv2d

    return models.Beside(StdConv2d(models.WIDTH, models.WIDTH, 3))


def _instance_norm() -> nn.Module:
    norm = nn.InstanceNorm2d(models.WIDTH, affine=True, track_running_stats=True)
    return models.Beside(norm)


def _no_checkpoints(model: nn.Module) -> None:
    model.set_grad_checkpointing(False)


def _unrolled(model: models.Checkpointed) -> None:
    model.checkpointing = False


def _hold_the_stem(model: models.Classifier) -> None:
    fl.freeze(model, "stem")


def _flag_the_stem(model: models.Classifier) -> None:
    model.stem.requires_grad_(False)


def _flag_the_gains(model: models.Classifier) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def _checkpoint_stages(model: nn.Module) -> None:
    model.set_grad_checkpointing(True)


def _to_channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


old_spectral_norm = nn.utils.spectral_norm
new_spectral_norm = nn.utils.parametrizations.spectral_norm

SWEPT = {
    case.name: case
    for case in (
        Case("timm resnet", _timm_resnet("BasicBlock", 8, 12, 16, 24), sixteen(32)),
        Case("timm mobilenetv3", _mobilenetv3, sixteen(32)),
        Case("unet", models.UNet, _maps),
    )
}
"""Those on which every number of microbatches is tried; 16 samples."""

OTHERS = {
    case.name: case
    for case in (
        Case("timm resnet, bottleneck", _timm_resnet("Bottleneck", 4, 6, 8, 12), LARGER),
        Case("hf resnet", zoo_transformers.resnet, images("pixel_values", 32, 8), ask_for_loss),
        Case(
            "timm densenet, checkpointed",
            _timm("densenet121", growth_rate=4, block_config=(2, 2, 2), memory_efficient=True),
            LARGER,
            unroll=_no_checkpoints,
        ),
        Case("timm efficientnet", _timm("test_efficientnet"), LARGER),
        Case(
            "timm levit",
            _timm(
                "levit_128s",
                img_size=32,
                embed_dim=(16, 24, 32),
                num_heads=(2, 3, 4),
                depth=(1, 1, 1),
                drop_path_rate=0.0,
            ),
            LARGER,
        ),
        Case(
            "timm resnet, checkpointed",
            _timm_resnet("BasicBlock", 4, 6, 8, 12),
            LARGER,
            prepare=_checkpoint_stages,
            unroll=_no_checkpoints,
        ),
        Case("checkpointed", models.Checkpointed, IMAGES, unroll=_unrolled),
        Case("checkpointed, others", models.CheckpointedOthers, IMAGES, unroll=_unrolled),
        Case("discriminator, twice", models.Discriminator, _real_and_fake, tell_apart),
        Case(
            "discriminator, spectral, old",
            partial(models.Discriminator, old_spectral_norm),
            _real_and_fake,
            tell_apart,
        ),
        Case(
            "discriminator, spectral, new",
            partial(models.Discriminator, new_spectral_norm),
            _real_and_fake,
            tell_apart,
        ),
        Case("shared norm, no momentum", models.SharedNorm, IMAGES),
        Case("pointnet, no affine", models.PointNet, labelled(8, 3, 20)),
        Case("three dimensions", zoo_models.conv3d, labelled(8, 1, 6, 6, 6)),
        Case("branch", models.Branching, IMAGES),
        Case("some samples", models.Masked, IMAGES),
        Case("teacher before", models.Distilled, IMAGES, distil_before),
        Case("teacher after", models.Distilled, IMAGES, distil_after),
        Case("untracked, eval", models.Untracked, IMAGES),
        Case("F.batch_norm", models.Functional, IMAGES),
        Case("torch.batch_norm", models.Builtin, IMAGES),
        Case(
            "spectral norm, old",
            lambda: models.Beside(old_spectral_norm(models.convolution())),
            IMAGES,
        ),
        Case(
            "spectral norm, new",
            lambda: models.Beside(new_spectral_norm(models.convolution())),
            IMAGES,
        ),
        Case("instance norm, tracked", _instance_norm, IMAGES),
        Case("weight standardised", _standardised, IMAGES),
        Case(
            "held norm",
            lambda: models.Beside(models.convolution()),
            IMAGES,
            prepare=_hold_the_stem,
        ),
        Case(
            "flagged norm",
            lambda: models.Beside(models.convolution()),
            IMAGES,
            prepare=_flag_the_stem,
        ),
        Case("flagged gains", models.Shuffle, IMAGES, prepare=_flag_the_gains),
        Case("two inputs", models.TwoInputs, _image_and_row, two_inputs),
        Case("two heads", zoo_models.TwoBranches, labelled(8, 1, 8, 8), classify_twice),
        Case("in place", models.InPlace, IMAGES),
        Case("shuffled halves", models.Shuffle, IMAGES),
        Case("scales", models.Scales, IMAGES),
        Case("aliased", models.Aliased, IMAGES),
        Case("writes later", models.WritesLater, IMAGES),
        Case("norm first and last", models.NormFirst, IMAGES),
        Case("computed gain", models.ComputedGain, IMAGES),
        Case("unused norm", models.Unused, IMAGES),
        Case("used by some", models.Auxiliary, _some_labelled_twice, with_auxiliary),
        Case("cached", models.Cached, IMAGES),
        Case("lstm", models.Recurrent, labelled(8, 6, 8)),
        Case("tied weights", models.Tied, IMAGES),
        Case("input's gradient", models.Shuffle, _attacked),
        Case(
            "channels last",
            _timm_resnet("BasicBlock", 4, 6, 8, 12),
            _channels_last,
            prepare=_to_channels_last,
        ),
    )
}

CASES = SWEPT | OTHERS

HEAVY = (
    "timm resnet",
    "timm mobilenetv3",
    "timm resnet, bottleneck",
    "timm resnet, checkpointed",
    "timm densenet, checkpointed",
    "timm efficientnet",
    "timm levit",
    "hf resnet",
    "channels last",
)
"""Those that take most of the time, or of the imports."""


def each_of(cases: Iterable[Case], *, slow: Sequence[str] = ()) -> pytest.MarkDecorator:
    """A test for each case; those that are named in `slow` run in `make test-all` only."""
    given = [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.name in slow else [])
        for case in cases
    ]
    return pytest.mark.parametrize("case", given)
