"""A hundred architectures: the zoo, and more of timm and transformers, small, by their configs."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from tests.zoo import BREADTH, ZOO, Entry, ask_for_loss, classify
from tests.zoo_batches import images, labelled, tokens
from tests.zoo_models import CLASSES, VOCABULARY

# Which take 64 x 64 pixels as they are.
_AT_ANY_SIZE = (
    "lcnet_035", "tinynet_e", "repghostnet_050", "mobilenetv4_conv_small_035", "ghostnet_050",
    "mobilenetv2_035", "efficientvit_b0", "dla46_c", "hardcorenas_a", "fbnetc_100", "starnet_s1",
    "mixnet_s", "edgenext_xx_small", "mobileone_s0", "rexnet_100", "regnetz_005", "fastvit_t8",
    "repvit_m0_9", "ese_vovnet19b_slim", "hgnet_tiny", "tf_efficientnet_lite0", "cs3darknet_s",
    "gernet_s", "shvit_s1", "inception_next_atto", "mambaout_femto", "resnest14d", "skresnet18",
    "nf_regnet_b0", "convnextv2_atto", "gcresnext26ts", "ecaresnet26t", "dla34", "poolformer_s12",
    "pvt_v2_b0", "mobilevitv2_050", "mobilevit_xxs", "swiftformer_xs", "tiny_vit_5m_224",
    "crossvit_tiny_240",
)  # fmt: skip
_SIZED = (
    "deit_tiny_patch16_224", "cait_xxs24_224", "convit_tiny", "coat_lite_tiny", "pit_ti_224",
    "xcit_nano_12_p16_224", "resmlp_12_224", "visformer_tiny",
)  # fmt: skip


def _of_timm(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=CLASSES, **options)


def _timm(name: str, **options: Any) -> Entry:
    # What is frozen is all but the head, which the test finds by itself.
    return Entry(partial(_of_timm, name, options), labelled(4, 3, 64, 64), classify, "", "")


_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def _of_transformers(kind: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, kind[: kind.rindex("For")] + "Config")(**options)
    return getattr(transformers, kind)(config)  # type: ignore[no-any-return]


def _texts(kind: str, sequence_labels: bool = False, **options: Any) -> Entry:
    given = {"vocab_size": VOCABULARY, "pad_token_id": 0, **_SMALL, **options}
    # Its input is frozen and its output is trained, so they cannot be one tensor.
    given |= {"tie_word_embeddings": False} if sequence_labels else {"num_labels": CLASSES}
    batch = tokens(sequence_labels=sequence_labels)
    return Entry(partial(_of_transformers, kind, given), batch, ask_for_loss, "", "")


def _pictures(kind: str, **options: Any) -> Entry:
    given = {"num_labels": CLASSES, **options}
    batch = images("pixel_values", 32)
    return Entry(partial(_of_transformers, kind, given), batch, ask_for_loss, "", "")


_SIZES = {"image_size": 32, "patch_size": 8, **_SMALL}
_TRANSFORMERS: dict[str, Entry] = {
    "roberta": _texts("RobertaForSequenceClassification"),
    "distilbert": _texts(
        "DistilBertForSequenceClassification", dim=16, n_layers=2, n_heads=2, hidden_dim=32
    ),
    "albert": _texts("AlbertForSequenceClassification", embedding_size=8),
    "electra": _texts("ElectraForSequenceClassification", embedding_size=8),
    "mpnet": _texts("MPNetForSequenceClassification"),
    "deberta": _texts("DebertaV2ForSequenceClassification"),
    "llama": _texts("LlamaForCausalLM", sequence_labels=True),
    "mistral": _texts("MistralForCausalLM", sequence_labels=True, num_key_value_heads=1),
    "qwen2": _texts("Qwen2ForCausalLM", sequence_labels=True, num_key_value_heads=1),
    "gemma": _texts("GemmaForCausalLM", sequence_labels=True, num_key_value_heads=1, head_dim=8),
    "phi": _texts("PhiForCausalLM", sequence_labels=True),
    "gpt_neox": _texts("GPTNeoXForCausalLM", sequence_labels=True),
    "opt": _texts(
        "OPTForCausalLM", sequence_labels=True, ffn_dim=32, word_embed_proj_dim=16,
        max_position_embeddings=32,
    ),
    "bloom": _texts("BloomForCausalLM", sequence_labels=True, n_layer=2, n_head=2),
    "falcon": _texts("FalconForCausalLM", sequence_labels=True),
    "deit": _pictures("DeiTForImageClassification", **_SIZES),
    "beit": _pictures("BeitForImageClassification", **_SIZES),
    "dinov2": _pictures("Dinov2ForImageClassification", **_SIZES),
    "mobilevit": _pictures("MobileViTForImageClassification", image_size=32),
    "poolformer": _pictures(
        "PoolFormerForImageClassification", hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]
    ),
}  # fmt: skip

ARCHITECTURES: dict[str, Entry] = {
    **ZOO,
    **BREADTH,
    **{name: _timm(name) for name in _AT_ANY_SIZE},
    **{name: _timm(name, img_size=64) for name in _SIZED},
    **_TRANSFORMERS,
}

# A convolution of every kind, attention, recurrence, languages, a norm of each dimension.
FEW = (
    "two_branches", "mlp_bn1d", "conv_bn3d", "instance_norm", "transformer", "lstm", "gru",
    "hf_resnet", "hf_vit", "bert", "gpt2", "repvgg", "hf_efficientnet", "hf_convnext", "densenet",
)  # fmt: skip


def head_of(model: nn.Module, entry: Entry) -> str:
    """The name of the module that stays trainable."""
    if entry.head:
        return entry.head
    heads = ("head", "classifier", "fc", "lm_head", "score", "embed_out", "classifier_head")
    return next(name for name in heads if name in dict(model.named_children()))


def backbone_of(model: nn.Module, entry: Entry) -> str | list[str]:
    """A selector of what is frozen: what the zoo says, else all top modules but the head's."""
    if entry.backbone:
        return entry.backbone
    top = head_of(model, entry).partition(".")[0]
    return [name for name, child in model.named_children() if name != top and list(child.buffers())
            + list(child.parameters())]  # fmt: skip
