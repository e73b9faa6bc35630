"""LoRA on a convolutional network with BatchNorm.

frostline audit examples/targets/lora.py:setup

peft freezes every weight of the base and leaves its norms alone: they go on averaging in training
mode. The adapter that is saved afterwards has the LoRA matrices and not the statistics that they
were trained with, so that it gives other answers on a fresh base.

The audit says:
  FRZ101 error  the norms of the base write their statistics.
  FRZ403 error  those statistics are in no checkpoint of the adapter.
  FRZ303 info   the head of `modules_to_save` is a copy that trains; the base's own one stays.
`fl.freeze(model, fl.FLAGGED, mode='follow')` holds them and leaves the adapter's dropout on.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.proj = nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, images):
        return self.head(F.relu(self.proj(self.features(images).mean((2, 3)))))


def compute_loss(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def setup():
    torch.manual_seed(0)
    base = Base()
    base(torch.randn(64, 3, 16, 16))  # stands for pretraining
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["proj"], modules_to_save=["head"]
    )
    model = get_peft_model(base, config)
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(trainable, lr=1e-4),
        "batch": (torch.randn(8, 3, 16, 16), torch.randint(5, (8,))),
        "compute_loss": compute_loss,
    }
