"""The zoo's models of timm as it initialises them, small, without downloads.

timm is imported where used: a test of one small net does not pay for it.
"""

from __future__ import annotations

from torch import nn

from tests.zoo_models import CLASSES


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


def densenet() -> nn.Module:
    """Every layer reads all layers before it in its block."""
    import timm

    return timm.create_model(
        "densenet121",
        num_classes=CLASSES,
        growth_rate=8,
        block_config=(2, 2, 2),
        proj_drop_rate=0.1,
    )


def efficientnet() -> nn.Module:
    """Squeeze and excitation; timm's BatchNormAct2d throughout."""
    import timm

    return timm.create_model("test_efficientnet", num_classes=CLASSES, drop_path_rate=0.2)


def swin() -> nn.Module:
    """Attention masks and position indices are buffers outside of the state dict."""
    import timm

    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=CLASSES,
        img_size=32,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        drop_path_rate=0.3,
    )


def regnet() -> nn.Module:
    import timm

    return timm.create_model(
        "regnety_002",
        num_classes=CLASSES,
        depth=5,
        w0=16,
        wa=16.0,
        wm=1.7,
        group_size=8,
        stem_width=16,
        drop_path_rate=0.2,
    )


def nfnet() -> nn.Module:
    """No norms: its convolutions standardise their weights, by F.batch_norm in training mode."""
    import timm

    return timm.create_model("test_nfnet", num_classes=CLASSES, drop_path_rate=0.2)


def repvgg() -> nn.Module:
    """Every block has its training branches, each with a norm; an identity is a norm alone."""
    import timm
    from timm.models.byobnet import ByoBlockCfg

    return timm.create_model(
        "repvgg_a0",
        num_classes=CLASSES,
        blocks=tuple(ByoBlockCfg("rep", depth, width) for depth, width in ((1, 16), (2, 24))),
        stem_chs=16,
        drop_path_rate=0.2,
    )
