"""Modes and running statistics: F1 to F23."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.auditing.cases import Case
from tests.auditing.faults.fault import case, fault, flags_off, lived, running, sgd, trainable
from tests.auditing.faults.nets import (
    Detector,
    NormEval,
    classes,
    conv_norm,
    detector,
    images,
    mlp,
    squared,
)
from tests.zoo import ZOO, live, seeded

RESNET = ZOO["resnet18"]


@fault(1, "pytorch#86590")
def feature_extractor_by_flags() -> Case:
    model = lived(RESNET)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("fc.")
    return running(RESNET, model, "101", optimizer=sgd(model.fc.parameters()))


@fault(1, "ultralytics#9391")
def detector_with_frozen_layers_by_name() -> Case:
    model = detector()
    for name, parameter in model.named_parameters():
        if any(layer in name for layer in ("backbone.0.", "backbone.1.")):
            parameter.requires_grad = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return case(model, images(), squared, "101", optimizer=optimizer)


@fault(1, "lightly#1438")
def pretrained_backbone_deactivated() -> Case:
    entry = ZOO["hf_resnet"]
    model = lived(entry)
    flags_off(model.resnet)
    return running(entry, model, "101", optimizer=sgd(trainable(model)))


@fault(2, "indexnet_matting#35")
def backbone_in_eval_at_construction() -> Case:
    model = detector()
    for part in (model.backbone, model.neck):
        flags_off(part)
        part.eval()
    return case(model, images(), squared, "102", optimizer=sgd(trainable(model)))


@fault(2, "deeplab-xception#140")
def eval_and_then_train_again_each_epoch() -> Case:
    model = detector()
    flags_off(model.backbone)
    model.backbone.eval()
    model.train()
    return case(model, images(), squared, "101", optimizer=sgd(trainable(model)))


@fault(3, "PL#2551")
def eval_before_a_fit_that_validates() -> Case:
    model = detector()
    flags_off(model.backbone)
    model.backbone.eval()
    return case(model, images(), squared, "102", optimizer=sgd(trainable(model)))


@fault(4, "transformers' Trainer.training_step")
def base_in_eval_for_a_trainer_that_calls_train() -> Case:
    entry = ZOO["hf_resnet"]
    model = lived(entry)
    flags_off(model.resnet)
    model.resnet.eval()
    return running(entry, model, "102", optimizer=sgd(trainable(model)))


def _norm_eval() -> Detector:
    model = detector(NormEval(conv_norm(3, 6), conv_norm(6, 8)))
    flags_off(model.backbone)
    return model.train()


@fault(5, "Lightning's _ModuleMode.restore")
def modes_written_back_past_the_override() -> Case:
    model = _norm_eval()
    for module in model.modules():
        module.training = True
    return case(model, images(), squared, "101", optimizer=sgd(trainable(model)))


@fault(6, "pytorch#9046")
def one_child_trains_under_an_override() -> Case:
    model = _norm_eval()
    model.backbone[0].train()
    return case(model, images(), squared, "101", optimizer=sgd(trainable(model)))


def _disabled_train(self: object, mode: bool = True) -> object:
    """Overwrite model.train with this function to make sure the mode does not change any more."""
    return self


@fault(7, "the disabled_train idiom of latent diffusion")
def train_replaced_on_the_instance() -> Case:
    model = detector()
    flags_off(model.backbone)
    model.backbone.eval()
    model.backbone.train = _disabled_train
    return case(model, images(), squared, "110", optimizer=sgd(trainable(model)))


@fault(7, "pytorch#68648")
def train_replaced_by_a_lambda() -> Case:
    model = detector()
    flags_off(model.backbone)
    model.backbone.eval()
    model.backbone.train = lambda _: None
    return case(model, images(), squared, "110", optimizer=sgd(trainable(model)))


def _norms(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


@fault(8, "PL#15063")
def statistics_held_by_track_running_stats() -> Case:
    model = detector()
    flags_off(model.backbone)
    for norm in _norms(model.backbone):
        norm.track_running_stats = False
    return case(model, images(), squared, "105", optimizer=sgd(trainable(model)))


@fault(9, "a momentum of 0, as several repositories set it")
def statistics_held_by_momentum() -> Case:
    model = detector()
    flags_off(model.backbone)
    for norm in _norms(model.backbone):
        norm.momentum = 0.0
    return case(model, images(), squared, "101", "105", optimizer=sgd(trainable(model)))


@fault(10, "timm#876")
def only_the_norms_of_images_in_eval() -> Case:
    entry = ZOO["levit"]
    model = lived(entry)
    flags_off(model)
    model.head.requires_grad_(True)
    model.train()
    for module in (*model.stem.modules(), *model.stages.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return running(entry, model, "101", "102", optimizer=sgd(trainable(model)))


@fault(10, "smp's list of norms, read against detectron2's")
def instance_norm_left_out() -> Case:
    entry = ZOO["instance_norm"]
    model = lived(entry)
    flags_off(model.backbone)
    return running(entry, model, "101", optimizer=sgd(trainable(model)))


class _Pooled(nn.Module):
    """Image pooling of DeepLab: one value a channel and sample reaches its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = NormEval(conv_norm(3, 8))
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooling(self.backbone(x)).flatten(1))


def _pooled() -> _Pooled:
    with seeded(7):
        model = live(_Pooled())
    flags_off(model.backbone)
    return model.train()


@fault(11, "mmdet#2155")
def one_image_reaches_a_trainable_norm() -> Case:
    model = _pooled()
    return case(model, images(1), classes, "502", optimizer=sgd(trainable(model)))


@fault(11, "mmdet#437")
def one_image_reaches_a_frozen_norm() -> Case:
    model = _pooled()
    flags_off(model.pooling)
    return case(model, images(1), classes, "101", "502", optimizer=sgd(trainable(model)))


@fault(12, "mmdet#577")
def converted_to_sync_after_the_freeze() -> Case:
    model = detector()
    flags_off(model.backbone)
    model.backbone.eval()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return case(model, images(), squared, "102", optimizer=sgd(trainable(model)))


@fault(13, "torch's convert_sync_batchnorm, which makes new objects")
def patches_lost_in_the_conversion() -> Case:
    model = detector()
    flags_off(model.backbone)
    for norm in _norms(model.backbone):
        norm.eval()
        norm.train = _disabled_train
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return case(model, images(), squared, "102", optimizer=sgd(trainable(model)))


class _Skips(nn.Module):
    """Segmentation with an encoder that `train` and `eval` pass by once it is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_norm(3, 8), nn.Dropout2d(0.2))
        self.decoder = nn.Conv2d(8, 2, 1)
        self.frozen = False

    def freeze_encoder(self) -> None:
        flags_off(self.encoder)
        for norm in _norms(self.encoder):
            norm.eval()
        self.frozen = True

    def train(self, mode: bool = True) -> _Skips:
        self.training = mode
        for name, module in self.named_children():
            if not (self.frozen and name == "encoder"):
                module.train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


@fault(14, "segmentation_models.pytorch's freeze_encoder")
def encoder_stays_in_training_during_validation() -> Case:
    with seeded(7):
        model = live(_Skips())
    model.train()
    model.freeze_encoder()
    return case(model, images(), squared, "109", optimizer=sgd(trainable(model)))


@fault(15, "torch.optim.swa_utils.update_bn")
def statistics_wiped_by_update_bn() -> Case:
    model = _norm_eval()
    torch.optim.swa_utils.update_bn([images(), images(6)], model)
    return case(model, images(), squared, "007", optimizer=sgd(trainable(model)))


class _Checkpointed(Detector):
    """Activations of the neck are computed again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = checkpoint(self.backbone, self.stem(x), use_reentrant=False)
        return self.head(self.neck(features))


def _checkpointed() -> _Checkpointed:
    with seeded(7):
        return live(_Checkpointed()).train()


@fault(16, "pytorch#96136")
def trainable_norms_computed_again() -> Case:
    model = _checkpointed()
    flags_off(model.head)
    return case(model, images(), squared, "504", optimizer=sgd(trainable(model)))


@fault(16, "fairscale#1035")
def frozen_norms_computed_again() -> Case:
    model = _checkpointed()
    flags_off(model.backbone)
    return case(model, images(), squared, "101", "504", optimizer=sgd(trainable(model)))


class _Student(nn.Module):
    """A student, and its teacher as a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(conv_norm(3, 6), nn.Conv2d(6, 4, 1))
        self.teacher = nn.Sequential(conv_norm(3, 8), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


def _student() -> _Student:
    with seeded(7):
        model = live(_Student())
    flags_off(model.teacher)
    return model.train()


def _distil(model: _Student, batch: Tensor) -> Tensor:
    with torch.no_grad():
        target = model.teacher(batch)
    return F.mse_loss(model(batch), target)


def _distil_twice(model: _Student, batch: Tensor) -> Tensor:
    with torch.no_grad():
        target = model.teacher(batch) + model.teacher(batch.flip(-1))
    return F.mse_loss(model(batch), target)


@fault(17, "unbiased-teacher#47")
def teacher_forwarded_twice_under_no_grad() -> Case:
    model = _student()
    optimizer = sgd(model.student.parameters())
    return case(model, images(), _distil_twice, "101", "504", optimizer=optimizer)


class _Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))
        self.discriminator = nn.Sequential(conv_norm(3, 8), nn.Flatten(), nn.Linear(512, 1))


def _discriminate(model: _Gan, batch: Tensor) -> Tensor:
    fake = model.generator(batch[:, :2]).detach()
    return (
        F.softplus(model.discriminator(fake)).mean()
        + F.softplus(-model.discriminator(batch)).mean()
    )


@fault(17, "tensorpack#1183")
def generator_moves_in_the_step_of_the_discriminator() -> Case:
    with seeded(7):
        model = live(_Gan()).train()
    flags_off(model.generator)
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    return case(model, images(), _discriminate, "101", "504", optimizer=optimizer)


@fault(18, "sparseml#2191")
def teacher_follows_the_student_into_training() -> Case:
    model = _student()
    return case(model, images(), _distil, "101", optimizer=sgd(model.student.parameters()))


@fault(18, "CrossKD#13")
def teacher_in_eval_until_the_student_trains() -> Case:
    model = _student()
    model.teacher.eval()
    return case(model, images(), _distil, "102", optimizer=sgd(model.student.parameters()))


@fault(20, "timm.utils.freeze, after the optimizer was built")
def norms_exchanged_under_the_optimizer() -> Case:
    from timm.utils import freeze

    entry = ZOO["mobilenetv3"]
    model = lived(entry)
    optimizer = sgd(model.parameters())
    freeze(model, ["conv_stem", "bn1", "blocks"])
    return running(entry, model, "204", optimizer=optimizer)


@fault(20, "timm.utils.unfreeze, after the optimizer was built")
def norms_exchanged_back_are_new_parameters() -> Case:
    from timm.utils import freeze, unfreeze

    entry = ZOO["mobilenetv3"]
    model = lived(entry)
    optimizer = sgd(model.parameters())
    freeze(model, ["blocks"])
    unfreeze(model, ["blocks"])
    return running(entry, model, "202", "204", optimizer=optimizer)


@fault(21, "maskrcnn-benchmark#267")
def norms_frozen_as_they_were_born() -> Case:
    with seeded(7):
        model = Detector(NormEval(conv_norm(3, 6), conv_norm(6, 8))).train()
    flags_off(model.backbone)
    return case(model, images(), squared, "007", optimizer=sgd(trainable(model)))


@fault(22, "mmdet3d#2252")
def norms_of_the_neck_forgotten() -> Case:
    model = _norm_eval()
    flags_off(model.neck)
    return case(model, images(), squared, "101", optimizer=sgd(trainable(model)))


@fault(22, "mmdet#1122")
def part_without_norms_and_one_with() -> Case:
    model = nn.ModuleDict({"text": mlp(), "image": copy.deepcopy(detector())})
    flags_off(model["text"])
    flags_off(model["image"].backbone)
    optimizer = sgd(trainable(model))
    return case(model, images(), lambda m, x: squared(m["image"], x), "101", optimizer=optimizer)
