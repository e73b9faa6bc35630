"""Layer-wise learning rates: timm's own layers where it has them, else the numbered blocks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import frostline as fl
from frostline.errors import SelectionError
from frostline.parameter_groups import param_groups
from tests.parameter_groups.seen import layout, rates
from tests.zoo import CLASSES, ZOO

TIMM = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "efficientnet_b0",
    "resnetv2_18",
    "mixer_s32_224",
    "beit_base_patch16_224",
]


def same_as_timm(model: nn.Module, names: Any, lr: float, decay: float) -> None:
    import timm.optim

    theirs = timm.optim.param_groups_layer_decay(model, 0.05, names, layer_decay=decay)
    expected = [
        ([id(p) for p in g["params"]], lr * g["lr_scale"], g["weight_decay"]) for g in theirs
    ]
    assert len({rate for _, rate, _ in expected}) > 2
    assert layout(param_groups(model, lr, weight_decay=0.05, layer_decay=decay)) == expected


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3", "levit", "vit_tiny", "convnext"])
def test_equal_to_timm_on_the_zoo(name: str) -> None:
    model = ZOO[name].make()
    names = getattr(model, "no_weight_decay", set)()
    same_as_timm(model, names, 1e-3, 0.75)
    for frozen in list(model.parameters())[::3]:
        frozen.requires_grad_(False)
    same_as_timm(model, names, 3e-4, 0.65)


@pytest.mark.parametrize("name", TIMM)
def test_equal_to_timm_on_more_architectures(name: str) -> None:
    import timm

    # Names and shapes decide; without memory the architectures come in their real size.
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=CLASSES)
    same_as_timm(model, getattr(model, "no_weight_decay", set)(), 1e-3, 0.7)


def test_timms_own_groups_have_one_learning_rate_without_timms_schedulers() -> None:
    import timm.optim

    model = ZOO["vit_tiny"].make()
    theirs = torch.optim.AdamW(timm.optim.param_groups_layer_decay(model, layer_decay=0.5), 1.0)
    assert {group["lr"] for group in theirs.param_groups} == {1.0}
    ours = torch.optim.AdamW(param_groups(model, 1.0, layer_decay=0.5))
    assert {group["lr"] for group in ours.param_groups} == {0.0625, 0.125, 0.25, 0.5, 1.0}


def test_a_compiled_timm_model_has_the_same_groups() -> None:
    model = ZOO["vit_tiny"].make()
    asked: dict[str, Any] = {"weight_decay": 0.05, "layer_decay": 0.7}
    plain = layout(param_groups(model, 1e-3, **asked))
    assert layout(param_groups(torch.compile(model), 1e-3, **asked)) == plain


def test_what_submodules_say_of_decay_counts_where_timm_asks_only_the_root() -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model("edgenext_xx_small")
    names = [name for name, _ in model.named_parameters() if name.endswith(".xca.temperature")]
    assert names
    assert not hasattr(model, "no_weight_decay")
    same_as_timm(model, names, 1e-3, 0.7)


def above(model: nn.Module) -> list[list[str]]:
    """Names of the parameters by layer, from the lowest; each has half the next one's rate."""
    found = rates(model, param_groups(model, 1.0, layer_decay=0.5))
    assert max(rate for rate, _ in found.values()) == 1.0
    levels = sorted({rate for rate, _ in found.values()})
    assert levels == [0.5**i for i in reversed(range(len(levels)))]
    return [[name for name, (r, _) in found.items() if r == rate] for rate in levels]


def shape(model: nn.Module) -> list[set[str]]:
    """The parts that stand in each layer: names up to the number of the block."""
    return [{_block(name) for name in layer} for layer in above(model)]


def _block(name: str) -> str:
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: numbered + 1])


GOLDEN: dict[str, list[set[str]]] = {
    "bert": [
        {
            "bert.embeddings.word_embeddings",
            "bert.embeddings.position_embeddings",
            "bert.embeddings.token_type_embeddings",
            "bert.embeddings.LayerNorm",
        },
        {"bert.encoder.layer.0"},
        {"bert.encoder.layer.1"},
        {"bert.pooler.dense", "classifier"},
    ],
    # The output weights are tied to the token embedding, which is the first place.
    "gpt2": [
        {"transformer.wte", "transformer.wpe"},
        {"transformer.h.0"},
        {"transformer.h.1"},
        {"transformer.ln_f"},
    ],
    "t5": [
        {"shared"},
        {"encoder.block.0"},
        {"encoder.block.1", "encoder.final_layer_norm"},
        {"decoder.block.0"},
        {"decoder.block.1"},
        {"decoder.final_layer_norm"},
    ],
    "hf_vit": [
        {"vit.embeddings", "vit.embeddings.patch_embeddings.projection"},
        {"vit.layers.0"},
        {"vit.layers.1"},
        {"vit.layernorm", "classifier"},
    ],
    "hf_resnet": [
        {"resnet.embedder.embedder.convolution", "resnet.embedder.embedder.normalization"},
        {"resnet.encoder.stages.0"},
        {"resnet.encoder.stages.1"},
        {"classifier.1"},
    ],
    "transformer": [{"encoder.layers.0"}, {"encoder.layers.1"}, {"head"}],
    "conv_bn3d": [{"backbone.0"}, {"backbone.1"}, {"head"}],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_layers_are_the_numbered_blocks(name: str) -> None:
    assert shape(ZOO[name].make()) == GOLDEN[name]


RESNET = [
    {"conv1", "bn1"},
    *({f"layer{i}.{j}"} for i in (1, 2, 3, 4) for j in (0, 1)),
    {"fc"},
]


def test_a_resnet_without_timm_has_the_layers_of_timm() -> None:
    model = ZOO["resnet18"].make()
    by_timm = above(model)
    assert shape(model) == RESNET
    # As the submodule of somebody's model it is an ordinary network.
    wrapped = nn.ModuleDict({"backbone": model})
    assert above(wrapped) == [[f"backbone.{name}" for name in layer] for layer in by_timm]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 1)),
            [{"0"}, {"2"}, {"3"}],
        ),
        # A backbone and a head are no list of blocks; two blocks of the same type are.
        (
            nn.Sequential(
                nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), nn.Linear(2, 1)
            ),
            [{"0.0"}, {"0.2"}, {"1"}],
        ),
        (
            nn.Sequential(
                nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
                nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
                nn.Linear(2, 1),
            ),
            [{"0.0", "0.1"}, {"1.0", "1.1"}, {"2"}],
        ),
        (nn.Sequential(nn.Flatten(), nn.ModuleDict({"1": nn.Linear(2, 2)})), None),
        (nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])}), None),
        (nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2))), None),
        (nn.Linear(2, 2), None),
        (nn.LSTM(2, 2), None),
        (nn.ParameterList([torch.ones(2), torch.ones(2)]), None),
    ],
    ids=[
        *("sequential", "backbone and head", "blocks and head"),
        *("one block in another", "one block", "names", "no children", "lstm", "parameters"),
    ],
)
def test_plain_networks(model: nn.Module, expected: list[set[str]] | None) -> None:
    if expected is None:
        with pytest.raises(SelectionError, match=r'finds no layers in \w+: .* groups=\{"backbone"'):
            param_groups(model, 1.0, layer_decay=0.5)
        return
    found = [{name.rpartition(".")[0] for name in layer} for layer in above(model)]
    assert found == expected


def test_a_parametrisation_is_no_block() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * self.scale

    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": nn.ModuleList([nn.Linear(2, 2)])})
    parametrize.register_parametrization(model["stem"], "weight", Scaled())
    stem, block = above(model)
    assert {name.split(".")[0] for name in stem} == {"stem"}
    assert {name.split(".")[0] for name in block} == {"blocks"}


def test_frozen_layers_count() -> None:
    model = ZOO["bert"].make()
    whole = rates(model, param_groups(model, 1.0, layer_decay=0.5))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layer.1" not in name)
    left = rates(model, param_groups(model, 1.0, layer_decay=0.5))
    assert left.items() < whole.items()


class Block(nn.Module):
    """Reads ``training`` itself, so that a freeze swaps its class; has numbered modules inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if self.training else x

    def __len__(self) -> int:
        return 0


def test_a_list_of_one_is_a_list_of_blocks() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(Block()), "b": nn.Sequential(Block())})
    assert above(model) == [
        [f"{name}.0.inner.{i}.{tensor}" for i in (0, 1) for tensor in ("weight", "bias")]
        for name in ("a", "b")
    ]


def test_a_held_block_is_a_block_like_the_others() -> None:
    model = nn.Sequential(Block(), Block())
    assert shape(model) == [{"0"}, {"1"}]
    whole = rates(model, param_groups(model, 1.0, layer_decay=0.5))
    fl.freeze(model, "0")
    assert type(model[0]) is not type(model[1])
    assert rates(model, param_groups(model, 1.0, layer_decay=0.5, frozen="keep")) == whole


def test_the_factor_multiplies_the_rate_of_a_named_group() -> None:
    model = ZOO["bert"].make()
    groups = {"bert.encoder": {"lr": 8.0, "weight_decay": 0.5}}
    found = rates(model, param_groups(model, 1.0, layer_decay=0.5, groups=groups))
    assert found["bert.embeddings.LayerNorm.weight"] == (0.125, 0.0)
    assert found["bert.encoder.layer.0.output.dense.weight"] == (2.0, 0.5)
    assert found["bert.encoder.layer.1.output.dense.weight"] == (4.0, 0.5)
    assert found["bert.encoder.layer.1.output.dense.bias"] == (4.0, 0.0)
    assert found["classifier.weight"] == (1.0, 0.0)


def test_a_factor_of_one_keeps_the_layers_apart() -> None:
    model = ZOO["gpt2"].make()
    halved, equal = (param_groups(model, 1.0, layer_decay=factor) for factor in (0.5, 1))
    assert [g["name"] for g in equal] == [g["name"] for g in halved]
    assert {g["lr"] for g in equal} == {1.0}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_layers_of_an_adapted_model_are_those_of_the_model() -> None:
    from peft import LoraConfig, get_peft_model

    model = ZOO["bert"].make()
    layers = [{_block(name) for name in layer} for layer in above(model)]
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], r=2))
    found = rates(adapted, param_groups(adapted, 1.0))
    assert {_block(n.removeprefix("base_model.model.")) for n in found} == layers[1] | layers[2]
    # What hangs beside the model in its wrapper learns like the top.
    adapted.extra = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = param_groups(adapted, 1.0, layer_decay=0.5)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == [
        ("layer 1", 0.25, 2),
        ("layer 2", 0.5, 2),
        ("layer 3", 1.0, 4),
    ]
