"""Train the head first, then one block after the other, and prove what stayed frozen.

python examples/gradual_unfreezing.py
"""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1))


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(block(8), block(32), block(32), nn.Linear(32, 2))
    x = torch.randn(256, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model.train()(x)  # stands for pretraining: the norms have seen data

    backbone = fl.freeze(model, ["0", "1", "2"])
    optimizer = torch.optim.AdamW(fl.param_groups(model, 1e-2, weight_decay=0.01))
    for epoch in range(6):
        if epoch in (2, 4):
            name = "2" if epoch == 2 else "1"
            # unfreeze returns what became trainable: the optimizer hears of it in the same line.
            optimizer.add_param_group({"params": fl.unfreeze(model, name), "lr": 1e-3})
            print(f"epoch {epoch}: block {name} trains from here on")
        model.train()
        for inputs, labels in zip(x.split(64), y.split(64), strict=True):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        backbone.assert_unchanged()  # what is left of the part, byte by byte
        print(f"epoch {epoch}: loss {loss.item():.3f}, frozen: {len(backbone.tensors)} tensors")


if __name__ == "__main__":
    main()
