"""transformers' Trainer makes the optimizer and the loop."""

# ruff: noqa: T201

import sys
import tempfile

import torch
from torch import nn
from transformers import Trainer, TrainingArguments


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.head = nn.Linear(6, 1)

    def forward(self, x, labels):
        out = self.head(self.backbone(x))
        return {"loss": (out - labels).square().mean(), "logits": out}


def main():
    data = [{"x": torch.randn(4), "labels": torch.randn(1)} for _ in range(16)]
    model = Net()
    model.backbone.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=int(sys.argv[1]),
            per_device_train_batch_size=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
        )
        try:
            Trainer(model, arguments, train_dataset=data).train()
        except Exception:
            print("the script's own net caught something")
        finally:
            print("the script's own finally ran")


if __name__ == "__main__":
    main()
