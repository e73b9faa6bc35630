"""What every test starts from: offline, one thread, fixed seeds, timm importable."""

from __future__ import annotations

import os

# Before any test imports a hub client.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

from tests import _torchvision

_torchvision.install()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
