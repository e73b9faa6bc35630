"""The handwritten digits that ship in the package (data/README.md has source and licence)."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor

COUNT = 1797
SIDE = 8
WHITEST = 16
SOURCE = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), "
    "UCI Machine Learning Repository, CC BY 4.0"
)


@dataclass(frozen=True, eq=False)
class Digits:
    """Images and what they show.

    Attributes:
        images: float32 of shape (N, 1, 8, 8), values in [0, 1].
        labels: int64 of shape (N,), values in 0..9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Digits:
        return Digits(self.images[index], self.labels[index])

    def inverted(self) -> Digits:
        """The same digits, dark on light."""
        return Digits(1 - self.images, self.labels)


def load_digits() -> Digits:
    """All 1797 digits, in the order of the original file.

    Example:
        >>> digits = load_digits()
        >>> digits.images.shape, digits.labels[:4]
        (torch.Size([1797, 1, 8, 8]), tensor([0, 1, 2, 3]))
    """
    content = bytearray(lzma.decompress(_compressed()))
    pixels = torch.frombuffer(content, dtype=torch.uint8, count=COUNT * SIDE * SIDE)
    labels = torch.frombuffer(content, dtype=torch.uint8, offset=COUNT * SIDE * SIDE)
    images = pixels.view(COUNT, 1, SIDE, SIDE).to(torch.float32) / WHITEST
    return Digits(images, labels.to(torch.int64))


def _compressed() -> bytes:
    return (resources.files(__package__) / "data" / "digits.xz").read_bytes()
