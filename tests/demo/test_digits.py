"""The digits are the published ones."""

from __future__ import annotations

import hashlib

import torch

from frostline.demo.digits import load_digits

# The SHA-256 of UCI's optdigits.tes, as published by those who pin that file.
PUBLISHED = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
# Class counts of the test set, from UCI's optdigits.names.
COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_written_back_they_are_the_original_file() -> None:
    digits = load_digits()
    pixels = (digits.images.flatten(1) * 16).to(torch.int64).tolist()
    lines = (
        ",".join(map(str, [*row, label]))
        for row, label in zip(pixels, digits.labels.tolist(), strict=True)
    )
    text = "".join(f"{line}\n" for line in lines)
    assert hashlib.sha256(text.encode()).hexdigest() == PUBLISHED


def test_counts_and_ranges() -> None:
    digits = load_digits()
    assert torch.bincount(digits.labels).tolist() == COUNTS
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.float32
    assert (digits.images.min(), digits.images.max()) == (0, 1)


def test_inverted_twice_is_the_same_and_once_is_not() -> None:
    digits = load_digits()
    assert torch.equal(digits.inverted().inverted().images, digits.images)
    assert torch.equal(digits.inverted().images[0], 1 - digits.images[0])
    assert not torch.equal(digits.inverted().images, digits.images)
