"""The blocks that are run again in backward: those that libraries call blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.accumulation.exact.blocks import blocks, checkpointed
from tests.zoo import BREADTH, ZOO, fresh


def names(model: nn.Module) -> list[str]:
    found = {id(block) for block in blocks(model)}
    return [name for name, module in model.named_modules() if id(module) in found]


@pytest.mark.parametrize(
    ("model", "some"),
    [
        ("resnet18", ["layer1.0", "layer4.1"]),
        ("mobilenetv3", ["blocks.0.0"]),
        ("vit_tiny", ["blocks.0"]),
        ("hf_resnet", ["resnet.encoder.stages.0.layers.0"]),
        ("bert", ["bert.encoder.layer.0"]),
    ],
)
def test_blocks_of_libraries(model: str, some: list[str]) -> None:
    entry = ZOO.get(model) or BREADTH[model]
    found = names(fresh(entry))
    assert set(some) <= set(found)
    for name in found:
        assert not any(other.startswith(name + ".") for other in found)


def test_a_plain_chain_has_none() -> None:
    assert blocks(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())) == []
    assert blocks(nn.Linear(2, 2)) == []


def test_blocks_run_again_and_their_forward_comes_back() -> None:
    runs: list[int] = []

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            runs.append(len(x))
            return self.two(self.one(x).relu())

    model = nn.Sequential(Block(), Block())
    with checkpointed(model):
        model(torch.randn(5, 3)).sum().backward()
        assert runs == [5, 5, 5, 5]
        with torch.no_grad():
            model(torch.randn(5, 3))
    assert len(runs) == 6
    assert not any("forward" in vars(module) for module in model.modules())
