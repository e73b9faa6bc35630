"""What the exact engine asks about a window: what couples beside batch norm calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline._batches import pieces
from frostline.probing.unjoinable import reduction, unjoined
from tests.everything import everything
from tests.probing.cases import CASES, square
from tests.probing.models import WIDTH, mlp, vectors
from tests.zoo import BREADTH, ZOO, fresh

KEEPS_STATE = {"codebook"}  # the engine compares buffers by itself
NEED_MORE_SAMPLES = {"experts with a capacity"}  # two do not fill it


def names(model: nn.Module, loss: Any, window: list[Any], **how: Any) -> list[str]:
    found = unjoined(model, loss, window, **how)
    assert found is not None
    assert not any(each.joinable for each in found)
    return [each.name for each in found]


@pytest.mark.parametrize("name", [n for n in CASES if n not in KEEPS_STATE | NEED_MORE_SAMPLES])
def test_couplers_beside_batch_norm_calls(name: str) -> None:
    case = CASES[name]
    expected = [coupler for coupler, joinable in case.couplers.items() if not joinable]
    assert names(case.make(), square, pieces(case.batch(), 1)) == expected


@pytest.mark.parametrize("name", ["batch norm", "hand-written", "scripted", "rolled"])
def test_microbatches_of_one_sample(name: str) -> None:
    case = CASES[name]
    expected = [coupler for coupler, joinable in case.couplers.items() if not joinable]
    assert names(case.make(), square, pieces(case.batch(), 8)) == expected


@pytest.mark.parametrize("name", ["two_branches", "mlp_bn1d", "transformer"])
def test_the_zoo_is_joinable(name: str) -> None:
    entry = ZOO[name]
    window = pieces(entry.batch(), 2)
    assert names(fresh(entry), entry.loss, window) == []
    assert reduction(fresh(entry), entry.loss, window) == "mean"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ZOO, *BREADTH])
def test_the_whole_zoo(name: str) -> None:
    entry = {**ZOO, **BREADTH}[name]
    model, window = fresh(entry), pieces(entry.batch(), 2)
    before = everything(model)
    assert names(model, entry.loss, window) == (["", "compute_loss"] if name == "clip" else [])
    assert reduction(model, entry.loss, window) == ("unknown" if name == "clip" else "mean")
    assert everything(model) == before


def scripted_norm() -> nn.Module:
    return mlp(torch.jit.script(nn.BatchNorm1d(WIDTH)))


def test_a_scripted_norm_hides_its_calls_and_is_found() -> None:
    model = scripted_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (found,) = unjoined(model, square, [vectors()]) or ()
    assert (found.name, found.kind) == ("1", "scripted BatchNorm1d")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_whole_scripted_model_is_one_module() -> None:
    model = torch.jit.script(mlp(nn.BatchNorm1d(WIDTH)))
    assert names(model, square, [vectors()]) == [""]
    assert names(model.eval(), square, [vectors()]) == []


def test_a_window_without_norm_calls_in_one_of_the_samples() -> None:
    """Norm calls are told apart by their order, and a run may make others."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            first = self.other(x[:, :3]) if x[0, 0] > 0 else self.one(x)[:, :3]
            return self.one(x)[:, :3] + first

    for seed in range(4):
        torch.manual_seed(seed)
        assert unjoined(Branches(), square, [torch.randn(4, WIDTH)]) is not None


def masked(model: nn.Module, batch: Any) -> Tensor:
    """The mean over labels that are not 0: another number of them in each sample."""
    scores = model(batch[0]).flatten(0, 1)
    return F.cross_entropy(scores, batch[1].flatten(), ignore_index=0)


def test_a_mean_over_items_is_one_if_it_is_said_so() -> None:
    labels = torch.tensor([[0, 1, 2], [3, 0, 0], [1, 1, 1], [0, 4, 2]])
    window = [(torch.randn(4, 3, WIDTH), labels)]
    model = nn.Linear(WIDTH, 5)
    assert names(model, masked, window) == ["compute_loss"]
    assert names(model, masked, window, items=lambda batch: (batch[1] != 0).sum()) == []
    assert names(model, masked, window, items=lambda batch: int((batch[1] != 0).sum())) == []
    assert names(model, masked, window, items=lambda batch: len(batch[1])) == ["compute_loss"]


@pytest.mark.parametrize(
    "window",
    [
        ["texts"],
        [vectors(1)],
        [vectors()[:0]],
        [(vectors(), torch.zeros(3))],
        [vectors()[:, :2]],
        [vectors()[:1], vectors()[:1, :2]],
        [],
    ],
    ids=["no tensor", "one sample", "empty", "ragged", "does not fit", "do not fit", "nothing"],
)
def test_what_cannot_be_probed_is_not_checked(window: list[Any]) -> None:
    model = mlp(nn.BatchNorm1d(WIDTH))
    before = everything(model)
    assert unjoined(model, square, window) is None
    assert reduction(model, square, window) == "unknown"
    assert everything(model) == before


def test_nothing_is_touched() -> None:
    model, window = mlp(nn.BatchNorm1d(WIDTH)), [vectors()]
    model(vectors()).sum().backward()
    before, batch, drawn = everything(model), window[0].clone(), torch.get_rng_state()
    assert names(model, lambda model, x: model(x.add_(1)).sum(), window) == []
    assert everything(model) == before
    assert torch.equal(window[0], batch)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.is_grad_enabled()


def test_few_forwards_of_two_samples() -> None:
    sizes: list[int] = []

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return square(model, batch)

    unjoined(mlp(nn.BatchNorm1d(WIDTH)), loss, [vectors()])
    assert sorted(sizes) == [2, 2, 2, 2, 4]
    sizes.clear()
    reduction(mlp(nn.BatchNorm1d(WIDTH)), loss, [vectors()])
    assert sizes == [2, 4]
