"""What a user hears at once about a freeze, and what stands in the part."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import FreezeError, FrostlineWarning


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[1].running_mean.normal_()
    model[1].num_batches_tracked.fill_(9)
    return model


def test_parameters_of_a_norm_without_the_norm_are_told() -> None:
    model = net()
    with pytest.warns(FrostlineWarning, match="^1: its parameters are frozen and its running"):
        fl.freeze(model, ["1.weight", "1.bias"])


@pytest.mark.parametrize("select", ["1", ["1.weight", "1.bias", "1"], ["0.weight"], "1.running_*"])
def test_a_norm_that_is_held_or_left_out_is_not_told(select: str | list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fl.freeze(net(), select)


@pytest.mark.parametrize("stats", ["update", "batch"])
def test_to_ask_a_held_copy_for_moving_statistics_is_noted(stats: str) -> None:
    model = net()
    fl.freeze(model)
    copied = copy.deepcopy(model)
    part = fl.freeze(copied, "1", stats=stats)
    assert "1: is held in eval mode by another part" in " ".join(str(part).split())
    assert not copied.train()[1].training


@pytest.mark.parametrize(
    ("first", "then"), [("hold", "hold"), ("update", "update"), ("batch", "hold")]
)
def test_near_misses_of_asking_in_vain(first: str, then: str) -> None:
    model = net()
    fl.freeze(model, "1", stats=first)
    undone = net()
    fl.freeze(undone).undo()
    for part in (fl.freeze(model, "1", stats=then), fl.freeze(undone, "1", stats="update")):
        assert "by another part" not in " ".join(str(part).split())


class Averaging(nn.Module):
    """Writes its buffer in training, beside a layer that may stay trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.lin = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.mul_(0.9)
        return self.lin(x)


@pytest.mark.parametrize(
    ("select", "exclude", "told"),
    [("0.mean", None, True), ("0", "0.lin", True), ("0", None, False), ("0.lin", None, False)],
)
def test_a_buffer_that_may_move_is_noted(select: str, exclude: str | None, told: bool) -> None:
    model = nn.Sequential(Averaging(), nn.Linear(4, 1))
    part = fl.freeze(model, select, exclude=exclude)
    assert ("0.mean: is covered, but" in " ".join(str(part).split())) == told


def test_an_undone_part_says_so_and_does_nothing() -> None:
    model = net()
    with fl.freeze(model, "1") as part:
        assert part.ok
    assert "undone" in str(part)
    assert "undone" in repr(part)
    calls = [part.changes, part.assert_unchanged, part.seal, part.as_code, part.__enter__]
    for call in calls:
        with pytest.raises(FreezeError, match=r'"1" was undone .* fl\.freeze\(model'):
            call()
    with pytest.raises(FreezeError, match="was undone"), part.released():
        pass
    part.undo()  # a second time does nothing


def test_a_part_that_was_unfrozen_away_is_no_error_in_a_loop() -> None:
    model = net()
    part = fl.freeze(model, "1")
    fl.unfreeze(model, "1")
    part.assert_unchanged()


@pytest.mark.parametrize("name", ["params", "seal"])
def test_switches_are_true_or_false(name: str) -> None:
    model = net()
    with pytest.raises(TypeError, match=f"{name}='False': expected True or False"):
        fl.freeze(model, "1", **{name: "False"})
    assert fl.parts(model) == []


def test_resume_keeps_both_selectors() -> None:
    model = net()
    part = fl.freeze(model, exclude="3")
    fresh = net()
    fresh.load_state_dict(model.state_dict())
    again = fl.freeze(fresh, fl.manifest(part))
    assert again.switches == part.switches
    assert fl.manifest(again) == fl.manifest(part)


def test_sealed_counts_what_is_left() -> None:
    model = net()
    part = fl.freeze(model, ["0", "1"])
    assert "sealed      7 tensors" in str(part)
    fl.unfreeze(model, "0")
    assert "sealed      5 tensors" in str(part)
