"""`released()`: plain types inside, held and verified afterwards."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules, quantize_dynamic
from torch.fx.experimental.optimization import fuse

import frostline as fl
from frostline.errors import FrozenStateChanged
from tests.freezing.content import content, moved
from tests.zoo import ZOO, live, seeded

X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.squash, self.drop, self.head = nn.Linear(64, 8), nn.Dropout(0.3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x))).flatten(1)
        return self.head(self.drop(self.squash(x)))


def net() -> nn.Module:
    return live(Net()).eval()


def types(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("name", ZOO)
def test_inside_there_is_nothing_of_ours_and_afterwards_all_of_it(name: str) -> None:
    model = ZOO[name].build(steps=0)
    plain = types(model)
    part = fl.freeze(model, ZOO[name].backbone)
    held, before = types(model), content(model)
    with part.released():
        assert types(model) == plain
        assert not any(key.startswith("_frostline") for m in model.modules() for key in vars(m))
        assert not any(part.model.get_submodule(n).training for n in part._terms.held)
        assert not any(p.requires_grad for p in part.model.parameters() if p in set(part_of(part)))
    assert types(model) == held
    assert held != plain
    assert moved(before, model) == []
    model.train()
    with seeded(1):
        ZOO[name].loss(model, ZOO[name].batch())
    assert part.ok


def part_of(part: fl.types.FrozenPart) -> list[Tensor]:
    return [t for t in part.tensors.values() if isinstance(t, nn.Parameter)]


def test_a_mode_written_inside_counts_as_asked_for() -> None:
    model = net()
    part = fl.freeze(model)
    with part.released():
        model.train()
    assert not model.norm.training
    part.undo()
    assert model.norm.training


def test_a_change_inside_raises_at_the_exit_and_the_part_is_held_again() -> None:
    model = net()
    part = fl.freeze(model)

    def write_inside() -> None:
        with part.released():
            model.norm.train()
            model.norm(torch.randn(4, 4, 3, 3))

    with pytest.raises(FrozenStateChanged, match=r"norm\.running_mean"):
        write_inside()
    assert not model.train().norm.training


def test_an_error_inside_passes_and_the_part_is_held_again() -> None:
    model = net()
    part = fl.freeze(model)
    with pytest.raises(ZeroDivisionError), part.released():
        raise ZeroDivisionError
    model.train()
    model(X)
    assert part.ok


# --- consumers that ask for exact types --------------------------------------------------


def fused(model: nn.Module) -> nn.Module:
    return fuse(model)


def quantised(model: nn.Module) -> nn.Module:
    return quantize_dynamic(model, {nn.Linear, nn.LSTM})


def fused_by_names(model: nn.Module) -> nn.Module:
    return fuse_modules(model, [["conv", "norm", "relu"]])


CONSUMERS = [fused, quantised, fused_by_names]


@pytest.mark.parametrize("consume", CONSUMERS, ids=lambda f: f.__name__)
def test_under_released_a_consumer_gives_what_it_gives_unheld(
    consume: Callable[[nn.Module], nn.Module],
) -> None:
    plain = net()
    model = copy.deepcopy(plain)
    part = fl.freeze(model)
    expected = consume(plain)
    with part.released():
        result = consume(model)
    assert types(result)[1:] == types(expected)[1:]
    assert types(expected)[1:] != types(plain)[1:], "control: the consumer does something"
    assert torch.equal(result(X), expected(X))
    assert part.ok


def test_quantize_dynamic_finds_linear_layers_that_are_held() -> None:
    """Their code does not read `training`, so their class is their own, also while held."""
    plain = net()
    model = copy.deepcopy(plain)
    fl.freeze(model)
    assert [t.__name__ for t in types(quantised(model))] == [
        t.__name__ for t in types(quantised(plain))
    ]


def test_limit_exact_types_of_held_norms_and_rnns_are_missed() -> None:
    """What docs/limits.md says; if torch learns better, say so there."""
    model = net()
    fl.freeze(model)
    assert any(isinstance(m, nn.BatchNorm2d) for m in fused(model).modules())
    with pytest.raises(AssertionError, match="did not find fuser method"):
        fused_by_names(model)
    recurrent = nn.Sequential(nn.LSTM(4, 4))
    part = fl.freeze(recurrent)
    assert isinstance(quantised(recurrent)[0], nn.LSTM)
    with part.released():
        assert not isinstance(quantised(recurrent)[0], nn.LSTM)


# --- pickles for machines without frostline ----------------------------------------------

READER = """
import sys
assert not any("frostline" in name for name in sys.modules)
import torch
model = torch.load(sys.argv[1], weights_only=False)
assert "frostline" not in sys.modules
assert not model[1].training
model.train()
assert model[1].training, "a plain model follows"
torch.save({k: v for k, v in model.state_dict().items()}, sys.argv[2])
"""


def read_without_frostline(path: Path) -> subprocess.CompletedProcess[str]:
    # -I: no PYTHONPATH, no user site; a meta path hook refuses an installed frostline.
    refuse = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'frostline':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", refuse + READER, str(path), f"{path}.out"],
        capture_output=True,
        text=True,
        timeout=60,
    )


def plain_layers() -> nn.Module:
    return live(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.4)))


def test_a_pickle_made_under_released_loads_without_frostline(tmp_path: Path) -> None:
    model = plain_layers()
    part = fl.freeze(model)
    with part.released():
        torch.save(model, tmp_path / "model.pt")
    child = read_without_frostline(tmp_path / "model.pt")
    assert child.returncode == 0, child.stderr
    loaded = torch.load(tmp_path / "model.pt.out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert part.ok


def test_limit_a_pickle_of_a_held_model_needs_frostline(tmp_path: Path) -> None:
    model = plain_layers()
    fl.freeze(model)
    torch.save(model, tmp_path / "model.pt")
    child = read_without_frostline(tmp_path / "model.pt")
    assert child.returncode == 1
    assert "ModuleNotFoundError: frostline" in child.stderr
    assert not torch.load(tmp_path / "model.pt", weights_only=False).train()[1].training


def test_a_pickle_under_released_names_no_class_of_ours() -> None:
    model = plain_layers()
    part = fl.freeze(model)
    assert b"frostline" in pickle.dumps(model)
    with part.released():
        assert b"frostline" not in pickle.dumps(model)
