"""The models of the zoo as their libraries initialise them, small, without downloads.

timm and transformers are imported where used: a test of one small net does not pay for them.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

CLASSES = 5
VOCABULARY = 40


def _conv_block(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()
    )


class TwoBranches(nn.Module):
    """A trunk of three conv-norm-ReLU blocks under two branches: the digit and its parity."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _conv_block(1, 8), _conv_block(8, 12), nn.MaxPool2d(2), _conv_block(12, 16)
        )
        self.main = nn.Sequential(
            nn.Flatten(), nn.Linear(256, 24), nn.ReLU(), nn.Linear(24, CLASSES)
        )
        self.second = nn.Sequential(
            nn.Flatten(), nn.Linear(256, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 1, 8, 8) to logits (N, CLASSES) and (N, 2)."""
        features = self.trunk(images)
        return self.main(features), self.second(features)


def _with_head(backbone: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(features, CLASSES)))


def mlp() -> nn.Module:
    backbone = nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16)
    )
    return _with_head(backbone, 16)


def conv3d() -> nn.Module:
    backbone = nn.Sequential(
        nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    )
    return _with_head(backbone, 6)


def instance_norm() -> nn.Module:
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )
    return _with_head(backbone, 32)


class Transformer(nn.Module):
    """torch's own encoder, whose fast path depends on requires_grad."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        """Vectors (N, length, 16) to logits (N, CLASSES)."""
        return self.head(self.encoder(sequence).mean(1))


class Recurrent(nn.Module):
    """A recurrent net with dropout between its layers, read at the last step."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        """Vectors (N, length, 8) to logits (N, CLASSES)."""
        outputs, _ = self.rnn(sequence)
        return self.head(outputs[:, -1])


def lstm() -> nn.Module:
    return Recurrent(nn.LSTM(8, 12, num_layers=2, dropout=0.3, batch_first=True))


def gru() -> nn.Module:
    return Recurrent(nn.GRU(8, 12, num_layers=2, dropout=0.3, batch_first=True))


def resnet18() -> nn.Module:
    import timm

    return timm.create_model("resnet18", num_classes=CLASSES)


def mobilenetv3() -> nn.Module:
    """Its norms are timm's BatchNormAct2d, which calls F.batch_norm itself."""
    import timm

    return timm.create_model("mobilenetv3_small_050", num_classes=CLASSES, drop_path_rate=0.2)


def levit() -> nn.Module:
    """Its attention overrides train() and keeps a cache that train() drops."""
    import timm

    return timm.create_model(
        "levit_128s",
        num_classes=CLASSES,
        img_size=64,
        embed_dim=(32, 48, 64),
        num_heads=(2, 3, 4),
        depth=(1, 1, 1),
        drop_path_rate=0.2,
    )


def vit_tiny() -> nn.Module:
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=CLASSES, img_size=32, depth=3, drop_path_rate=0.3
    )


def convnext() -> nn.Module:
    import timm

    return timm.create_model("convnext_atto", num_classes=CLASSES, drop_path_rate=0.3)


def hf_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=CLASSES,
    )
    return ResNetForImageClassification(config)


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.1,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
    )
    return ViTForImageClassification(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    """Output weights are tied to the token embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def t5() -> nn.Module:
    """One embedding under four names: shared, encoder, decoder, output."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        use_cache=False,
    )
    return T5ForConditionalGeneration(config)


def wav2vec2() -> nn.Module:
    """LayerDrop, SpecAugment, group norm and a weight-normed positional convolution."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(5, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        layerdrop=0.3,
        mask_time_prob=0.3,
        mask_time_length=4,
        num_labels=CLASSES,
    )
    return Wav2Vec2ForSequenceClassification(config)
