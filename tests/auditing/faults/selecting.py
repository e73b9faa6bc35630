"""Selecting the wrong thing: F37 to F47."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn.utils import parametrizations

import frostline as fl
from tests.auditing.cases import Case
from tests.auditing.faults.fault import (
    adamw,
    case,
    fault,
    flags_off,
    lived,
    running,
    sgd,
    trainable,
)
from tests.auditing.faults.nets import (
    around,
    classes,
    conv_norm,
    detector,
    images,
    mlp,
    squared,
    vectors,
)
from tests.zoo import ZOO, live


@fault(37, "FixRes' fine-tuning of EfficientNet")
def flag_set_on_the_model() -> Case:
    entry = ZOO["mobilenetv3"]
    model = lived(entry)
    model.requires_grad = False
    model.classifier.requires_grad = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    return running(entry, model, "001", optimizer=optimizer)


@fault(37, "discuss.pytorch.org 9979")
def flag_set_on_each_layer() -> Case:
    model = mlp()
    for layer in model.middle:
        layer.requires_grad = False
    return case(model, vectors(), classes, "001", optimizer=sgd(trainable(model)))


@fault(38, "a generator in public code")
def flag_misspelt_on_parameters() -> Case:
    model = mlp()
    for parameter in model.middle.parameters():
        parameter.require_grad = False
    return case(model, vectors(), classes, "002", optimizer=sgd(trainable(model)))


@fault(38, "the same on a module")
def flag_misspelt_on_a_module() -> Case:
    model = mlp()
    model.middle.requires_grads = False
    return case(model, vectors(), classes, "002", optimizer=sgd(trainable(model)))


@fault(39, "FixRes, 'fc' not in name")
def substring_spares_the_feed_forward_layers() -> Case:
    entry = ZOO["vit_tiny"]
    model = lived(entry)
    for name, parameter in model.named_parameters():
        if "fc" not in name and "head" not in name:
            parameter.requires_grad = False
    return running(entry, model, "003", optimizer=adamw(trainable(model)), frozen="blocks")


@fault(40, "axolotl#1464")
def pattern_with_a_prefix_that_is_not_there() -> Case:
    model = mlp()
    for name, parameter in model.named_parameters():
        if re.match(r"module\.middle\.", name):
            parameter.requires_grad = False
    optimizer = sgd(trainable(model))
    return case(model, vectors(), classes, "003", optimizer=optimizer, frozen="middle")


@fault(40, "InternVideo#45")
def list_of_layers_older_than_the_model() -> Case:
    model = detector()
    for name, parameter in model.named_parameters():
        if name.startswith(("encoder.0.", "encoder.1.", "neck.")):
            parameter.requires_grad = False
    codes = ("003", "101")
    claim = ["backbone", "neck"]
    return case(model, images(), squared, *codes, optimizer=sgd(trainable(model)), frozen=claim)


def _children_frozen() -> nn.Module:
    """As timm.utils.freeze does it on a root: what hangs on the root itself goes on training."""
    model = lived(ZOO["vit_tiny"])
    for child in model.children():
        flags_off(child)
    model.head.requires_grad_(True)
    return model


@fault(41, "timm.utils.freeze on a ViT")
def class_token_and_positions_left_out() -> Case:
    model = _children_frozen()
    return running(ZOO["vit_tiny"], model, "004", optimizer=adamw(trainable(model)))


@fault(41, "open_clip#244")
def class_token_and_positions_claimed() -> Case:
    model = _children_frozen()
    claim = ["cls_token", "pos_embed", "patch_embed", "blocks", "norm"]
    optimizer = adamw(trainable(model))
    return running(ZOO["vit_tiny"], model, "003", optimizer=optimizer, frozen=claim)


@fault(42, "weight_norm, which gives parameters other names")
def names_from_before_the_parametrisation() -> Case:
    model = around(lambda: nn.Linear(8, 8))
    names = {f"part.{name}" for name, _ in model.part.named_parameters()}
    parametrizations.weight_norm(model.part)
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad = False
    optimizer = sgd(trainable(model))
    return case(model, vectors(), classes, "003", optimizer=optimizer, frozen="part")


@fault(43, "transformers#31467")
def embedding_trains_through_the_tied_head() -> Case:
    entry = ZOO["gpt2"]
    model = lived(entry)
    flags_off(model.transformer)
    model.lm_head.weight.requires_grad = True
    optimizer = adamw(trainable(model))
    return running(entry, model, "003", "301", optimizer=optimizer, frozen="transformer")


@fault(44, "fromage#6")
def embedding_resized_after_the_freeze() -> Case:
    entry = ZOO["bert"]
    model = lived(entry)
    flags_off(model.bert)
    old = model.bert.embeddings.word_embeddings
    new = nn.Embedding(old.num_embeddings + 1, old.embedding_dim)
    with torch.no_grad():
        new.weight[:-1] = old.weight
    model.bert.embeddings.word_embeddings = new
    optimizer = adamw(trainable(model))
    return running(entry, model, "003", optimizer=optimizer, frozen="bert")


@fault(45, "pytorch#171523")
def parameters_wrapped_anew() -> Case:
    model = mlp()
    flags_off(model.middle)
    for module in model.middle.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    optimizer = sgd(trainable(model))
    return case(model, vectors(), classes, "003", optimizer=optimizer, frozen="middle")


@fault(45, "DeepSpeed#8358")
def parameters_wrapped_anew_under_the_optimizer() -> Case:
    model = mlp()
    optimizer = sgd(model.parameters())
    for module in model.middle.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return case(model, vectors(), classes, "202", "204", optimizer=optimizer)


@fault(46, "mmdet#9056")
def other_weights_loaded_into_the_part() -> Case:
    model = detector()
    fl.freeze(model, "backbone")
    other = live(nn.Sequential(conv_norm(3, 6), conv_norm(6, 8)))
    model.backbone.load_state_dict(other.state_dict())
    return case(model, images(), squared, "402", optimizer=sgd(trainable(model)))


@fault(47, "transformers#38061")
def initialisation_runs_over_the_part() -> Case:
    model = mlp()
    fl.freeze(model, "middle")

    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)

    model.apply(initialise)
    return case(model, vectors(), classes, "402", optimizer=sgd(trainable(model)))
