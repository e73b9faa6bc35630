"""The two networks of the story."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional

Branch = Literal["main", "second"]


class DocumentNet(nn.Module):
    """The network of the document: two convolutions with norms, three linear layers.

    Shapes: (N, 1, 32, 32) -> (N, 5).
    """

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.norm1 = nn.BatchNorm2d(6, momentum=momentum)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.norm2 = nn.BatchNorm2d(16, momentum=momentum)
        self.fc1 = nn.Linear(16 * 6 * 6, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return cast(Tensor, self.fc3(functional.relu(self.fc2(x))))


class Block(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Same height and width as ``x``."""
        return functional.relu(self.norm(self.conv(x)))


class Trunk(nn.Module):
    """What both branches share: three blocks. Shapes: (N, 1, 8, 8) -> (N, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = Block(1, 16)
        self.block2 = Block(16, 32)
        self.block3 = Block(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the digit."""
        x = functional.max_pool2d(self.block2(self.block1(x)), 2)
        return functional.avg_pool2d(self.block3(x), 2).flatten(1)


class TwoBranches(nn.Module):
    """One trunk; the main branch reads the digit, the second says whether it is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.main = nn.Linear(128, 10)
        self.second = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor, branch: Branch = "main") -> Tensor:
        """Scores of one branch: (N, 10) or (N, 2)."""
        head = self.main if branch == "main" else self.second
        return cast(Tensor, head(self.trunk(x)))

    def norms(self) -> list[nn.BatchNorm2d]:
        """The three norms of the trunk, in forward order."""
        return [module for module in self.trunk.modules() if isinstance(module, nn.BatchNorm2d)]
