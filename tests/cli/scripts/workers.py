"""DataLoader workers, which import this file again when they are spawned."""

# ruff: noqa: T201

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.full((4,), float(i))


def main(start):
    backbone = nn.Linear(4, 4)
    backbone.requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.01)
    loader = DataLoader(Numbers(), batch_size=4, num_workers=1, multiprocessing_context=start)
    for batch in loader:
        optimizer.zero_grad()
        model(batch).mean().backward()
        optimizer.step()
    print(f"{start}: {len(loader)} batches")


if __name__ == "__main__":
    main(sys.argv[1])
