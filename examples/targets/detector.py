"""A detector with a feature pyramid on a ResNet whose norms are frozen by hand.

frostline audit examples/targets/detector.py:setup

Every detection code base freezes the stem, the first stage and the norms of the backbone. This one
does it as many do: flags for the parameters, one `.eval()` for the norms in `__init__`, and none in
`train()`. `model.train()` then sets them all back. And one line froze nothing: a flag that is set
on a module is an attribute that nobody reads.

The audit says:
  FRZ001 error    `embedder.requires_grad = False` is an attribute: the stem's convolution trains.
  FRZ102 warning  the backbone's norms are quiet now, and `model.train()` makes them write.
`fl.freeze(model, ['backbone.embedder', 'backbone.**.normalization'])` holds what was meant.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel


class Detector(nn.Module):
    """A pyramid of three levels, and one head for scores and boxes at each."""

    def __init__(self, classes=3, width=32):
        super().__init__()
        config = ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1],
            layer_type="bottleneck",
        )  # fmt: skip
        self.backbone = ResNetModel(config)
        self.lateral = nn.ModuleList(nn.Conv2d(size, width, 1) for size in config.hidden_sizes[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.tower = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()
        )
        self.scores = nn.Conv2d(width, classes, 1)
        self.boxes = nn.Conv2d(width, 4, 1)

    def freeze_backbone(self):
        self.backbone.embedder.requires_grad = False
        self.backbone.encoder.stages[0].requires_grad_(False)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
                module.eval()

    def pyramid(self, images):
        maps = self.backbone(images, output_hidden_states=True).hidden_states[2:]
        merged = [lateral(map) for lateral, map in zip(self.lateral, maps, strict=True)]
        for upper, lower in ((2, 1), (1, 0)):
            merged[lower] = merged[lower] + F.interpolate(merged[upper], scale_factor=2.0)
        return [smooth(map) for smooth, map in zip(self.smooth, merged, strict=True)]

    def forward(self, images):
        towers = [self.tower(map) for map in self.pyramid(images)]
        return [self.scores(map) for map in towers], [self.boxes(map) for map in towers]


def compute_loss(model, batch):
    images, centres = batch
    scores, boxes = model(images)
    found = sum(F.binary_cross_entropy_with_logits(map, torch.zeros_like(map)) for map in scores)
    return found + sum((map.mean((2, 3)) - centres).abs().mean() for map in boxes)


def setup():
    torch.manual_seed(0)
    model = Detector()
    model.backbone(torch.randn(16, 3, 64, 64))  # stands for pretraining
    model.freeze_backbone()
    return {
        "model": model,
        "optimizer": torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9
        ),
        "batch": (torch.randn(2, 3, 64, 64), torch.rand(2, 4)),
        "compute_loss": compute_loss,
    }
