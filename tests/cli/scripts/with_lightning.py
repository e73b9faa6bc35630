"""Lightning makes the loop; the model hangs in a LightningModule that is itself never called."""

# ruff: noqa: T201

import sys
import warnings

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.head = nn.Linear(6, 1)

    def training_step(self, batch, _):
        return self.head(self.backbone(batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.head.parameters(), lr=0.01)


def main():
    lit = Lit()
    lit.backbone.requires_grad_(False)
    trainer = L.Trainer(
        max_steps=int(sys.argv[1]),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    try:
        trainer.fit(lit, DataLoader(torch.randn(64, 4), batch_size=4))
    except Exception:
        print("the script's own net caught something")
    finally:
        print("the script's own finally ran")


if __name__ == "__main__":
    main()
