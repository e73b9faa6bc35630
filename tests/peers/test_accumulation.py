"""Who gives the big batch: a sample computed again, the key facts, and the page."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tests.accumulation.approximations import one_forward
from tests.peers import accumulation, accumulation_page
from tests.peers.accumulation import COUNTS, MODELS, WAYS, Figures, Window, distances

STORED = accumulation.read()
ACCUMULATION = STORED["accumulation"]
CASES = [(model, str(k)) for model in MODELS for k in COUNTS]
EXACT = ("exact", "exact, windowed")
NOISE = "big batch, permuted"
SAME_GRADIENTS = ("compensated", "deferred", "torchgpipe's rule")
DISTANCES = ("gradient", "loss", "mean", "variance")
ROUNDING = 1e-10


def same(ours: Figures, stored: Figures) -> bool:
    """Equal figures; of rounding only that it is rounding."""
    return all(
        math.isclose(ours[key], stored[key], rel_tol=1e-4) or max(ours[key], stored[key]) < ROUNDING
        for key in DISTANCES
        if key in ours
    )


# --- what is stored ----------------------------------------------------------------------------


def test_stored_with_the_installed_libraries() -> None:
    assert accumulation.versions() == STORED["versions"], "run make peers"


@pytest.mark.parametrize("way", WAYS)
def test_distances_are_as_stored(way: str) -> None:
    model, batch = accumulation.built("MLP")
    for k in COUNTS:
        truth = Window(model, WAYS["big batch"], batch, k)
        found = distances(Window(model, WAYS[way], batch, k), truth)
        assert same(found, ACCUMULATION["MLP"][str(k)][way]), "run make peers"


@pytest.mark.parametrize("way", ["plain", "window statistics as constants", "exact"])
def test_a_convolutional_net_is_as_stored(way: str) -> None:
    model, batch = accumulation.built("MobileNetV3")
    truth = Window(model, WAYS["big batch"], batch, 4)
    found = distances(Window(model, WAYS[way], batch, 4), truth)
    assert same(found, ACCUMULATION["MobileNetV3"]["4"][way]), "run make peers"


def test_recalibration_is_as_stored() -> None:
    found = accumulation.recalibration("MLP")
    for split, tools in found.items():
        for tool, figures in tools.items():
            assert same(figures, STORED["recalibration"]["MLP"][split][tool]), (split, tool)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "k"), CASES)
def test_all_distances_are_as_stored(model: str, k: str) -> None:
    for way, figures in accumulation.accumulation(model, int(k)).items():
        assert same(figures, ACCUMULATION[model][k][way]), (way, "run make peers")


# --- what it says ------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "k"), CASES)
def test_exact_is_the_big_batch_and_nothing_else_is(model: str, k: str) -> None:
    ways = ACCUMULATION[model][k]
    noise = ways[NOISE]["gradient"]
    for way in EXACT:
        assert ways[way]["gradient"] <= 4 * noise, way
        assert max(ways[way][key] for key in DISTANCES) <= ROUNDING, way
    for way in WAYS.keys() - {*EXACT, NOISE, "big batch"}:
        assert ways[way]["gradient"] > 1e6 * noise, way


@pytest.mark.parametrize(("model", "k"), CASES)
def test_what_mends_only_the_statistics_has_plain_gradients(model: str, k: str) -> None:
    ways = ACCUMULATION[model][k]
    for way in SAME_GRADIENTS:
        assert ways[way]["gradient"] == pytest.approx(ways["plain"]["gradient"], rel=1e-9)
        assert ways[way]["mean"] < ways["plain"]["mean"] / 5
        assert ways[way]["mean"] > ROUNDING


@pytest.mark.parametrize(("model", "k"), CASES)
def test_constants_look_right_and_are_not(model: str, k: str) -> None:
    constants = ACCUMULATION[model][k]["window statistics as constants"]
    assert max(constants[key] for key in ("loss", "mean", "variance")) <= ROUNDING
    assert constants["gradient"] > 0.5


@pytest.mark.parametrize("model", ["MLP", "MobileNetV3"])
def test_constants_are_worse_than_plain_where_microbatches_are_larger(model: str) -> None:
    ways = ACCUMULATION[model]["4"]
    assert ways["window statistics as constants"]["gradient"] > ways["plain"]["gradient"]


@pytest.mark.parametrize("k", [str(k) for k in COUNTS])
@pytest.mark.parametrize("model", ["ResNet-18", "MobileNetV3"])
def test_windowed_takes_less_than_plain_and_the_kept_tape_as_much_as_the_batch(
    model: str, k: str
) -> None:
    peaks = {way: figures["peak"] for way, figures in ACCUMULATION[model][k].items()}
    assert peaks["exact, windowed"] < peaks["plain"] < peaks["big batch"]
    assert peaks["exact"] == pytest.approx(peaks["big batch"], rel=0.1)


@pytest.mark.parametrize("model", MODELS)
def test_only_layerwise_does_not_care_how_the_set_is_split(model: str) -> None:
    for split, tools in STORED["recalibration"][model].items():
        *others, layerwise = tools.values()
        assert max(layerwise.values()) < ROUNDING, split
        if split != "one of 66":
            assert min(of["variance"] for of in others) > 0.1, split


def test_two_outliers_in_a_batch_of_their_own_count_as_64_in_torch() -> None:
    for tools in (STORED["recalibration"][model]["64 and 2"] for model in MODELS):
        torchs, fvcores, *_ = tools.values()
        assert torchs["variance"] > 3 * fvcores["variance"]


# --- the harness can tell, and the page --------------------------------------------------------


def test_a_wrong_gradient_a_wrong_loss_and_a_wrong_statistic_are_seen() -> None:
    model, batch = accumulation.built("MLP")
    truth, other = (Window(model, WAYS["big batch"], batch, 4) for _ in range(2))
    found = distances(other, truth)
    assert found.pop("cosine") == pytest.approx(1.0)
    assert set(found.values()) == {0.0}
    other.gradient = 1.5 * truth.gradient
    other.loss = 2 * truth.loss
    first = next(name for name in truth.buffers if name.endswith("running_mean"))
    variance = truth.buffers[first.replace("mean", "var")]
    other.buffers[first] = truth.buffers[first] + 3 * variance.sqrt()
    found = distances(other, truth)
    assert found["gradient"] == pytest.approx(0.5)
    assert found["loss"] == pytest.approx(1.0)
    assert found["mean"] == pytest.approx(3.0)
    assert found["variance"] == 0


def test_the_truth_of_recalibration_is_what_the_first_norm_sees() -> None:
    model, inputs = accumulation.built("MLP")[0], accumulation.with_outliers("MLP")
    truth = copy.deepcopy(model)
    one_forward(truth, [inputs])
    seen = model.backbone[0](inputs).detach()
    torch.testing.assert_close(truth.backbone[1].running_mean, seen.mean(0))
    torch.testing.assert_close(truth.backbone[1].running_var, seen.var(0))
    assert len(inputs) == accumulation.SET


def test_the_page_shows_what_is_stored() -> None:
    assert accumulation_page.stale() == [], "run python -m tests.peers, or make peers"
    other = copy.deepcopy(STORED)
    other["accumulation"]["MLP"]["4"]["exact"]["gradient"] = 0.123
    assert accumulation_page.told(other) != accumulation_page.told(STORED)
