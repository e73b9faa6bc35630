"""The experiment behind docs/accumulation-digits.md, in small, and the figures on the page."""

from __future__ import annotations

import copy
import json
import statistics
from typing import Any

import pytest
import torch

from bench import _digits_page as page
from bench import digits_accumulation as digits
from frostline.demo.digits import load_digits
from frostline.demo.reproducible import reproducible

RECORD: dict[str, Any] = json.loads(digits.RESULTS.read_text())
SCENES = RECORD["scenes"]


def of(scene: str, way: str, what: str) -> list[Any]:
    return [run[what] for run in SCENES[scene][way]]


# --- the experiment ----------------------------------------------------------------------------


def test_exact_follows_the_big_batch_and_plain_does_not() -> None:
    """A step of the net with a norm of vectors."""
    with reproducible():
        torch.manual_seed(0)
        start, images = digits.norm_of_vectors().double().train(), load_digits()
        states = {name: _trained(copy.deepcopy(start), name, images) for name in digits.WAYS}
    truth = states["big batch"]
    far = {name: float((state - truth).norm() / truth.norm()) for name, state in states.items()}
    assert far["exact"] < 1e-13
    assert min(far[name] for name in ("plain", "deferred", "compensated")) > 1e-3


def _trained(model: torch.nn.Module, way: str, images: Any) -> torch.Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=digits.LEARNING_RATE)
    digits.WAYS[way](model, (images.images[: digits.BATCH].double(), images.labels[: digits.BATCH]))
    optimizer.step()
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def test_by_class_sorts_each_batch_and_draws_the_same_images() -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    with reproducible():
        for key in ("images", "by class"):
            batches = seen.setdefault(key, [])
            digits.run(digits.SCENES[key], lambda _, batch: batches.append(batch[1]), 0, 1)  # noqa: B023
    pairs = list(zip(seen["images"], seen["by class"], strict=True))
    assert len(pairs) == digits.TRAINING // digits.BATCH
    for shuffled, by_class in pairs:
        assert torch.equal(shuffled.sort().values, by_class)
        assert not torch.equal(shuffled, by_class)


# --- what is stored ----------------------------------------------------------------------------


def test_the_stored_results_are_of_these_settings() -> None:
    epochs = RECORD["settings"]["epochs"]
    assert RECORD["settings"] == digits.conditions(epochs)
    assert list(SCENES) == list(digits.SCENES)
    for ways in SCENES.values():
        assert list(ways) == list(digits.WAYS)
        for runs in ways.values():
            assert len(runs) == 5
            assert {len(run[what]) for run in runs for what in ("loss", "accuracy")} == {epochs}


def test_the_docs_have_the_stored_figures() -> None:
    assert page.stale(RECORD) == []
    other = copy.deepcopy(RECORD)
    other["scenes"]["vectors"]["plain"][0]["accuracy"][-1] += 40
    assert page.tell(other) != page.tell(RECORD)


@pytest.mark.parametrize("scene", digits.SCENES)
def test_exact_is_the_big_batch_to_the_end(scene: str) -> None:
    for what in ("accuracy", "population_accuracy"):
        assert of(scene, "exact", what) == of(scene, "big batch", what)
    pairs = zip(of(scene, "exact", "loss"), of(scene, "big batch", "loss"), strict=True)
    for ours, truth in pairs:
        assert ours == pytest.approx(truth, rel=1e-6)


def test_a_norm_of_vectors_loses_its_accuracy_in_the_weights() -> None:
    for way in ("plain", "deferred", "compensated"):
        for what in ("accuracy", "population_accuracy"):
            lost = [
                truth - ours
                for ours, truth in zip(
                    _last(of("vectors", way, what)),
                    _last(of("vectors", "big batch", what)),
                    strict=True,
                )
            ]
            assert min(lost) > 5, (way, what)
        median = statistics.median(_last(of("vectors", way, "accuracy")))
        assert median <= statistics.median(_last(of("vectors", "plain", "accuracy")))


def _last(values: list[Any]) -> list[float]:
    return [value[-1] if isinstance(value, list) else value for value in values]


@pytest.mark.parametrize("scene", ["images", "by class"])
def test_norms_of_images_show_no_difference_in_accuracy(scene: str) -> None:
    truth = _last(of(scene, "big batch", "accuracy"))
    for way in ("plain", "deferred", "compensated"):
        points = [a - b for a, b in zip(_last(of(scene, way, "accuracy")), truth, strict=True)]
        assert abs(statistics.median(points)) < page.ONE_POINT, way


def test_the_loss_by_class_is_larger_but_not_with_every_start() -> None:
    truth = _last(of("by class", "big batch", "loss"))
    for way in ("plain", "deferred", "compensated"):
        ratios = [a / b for a, b in zip(_last(of("by class", way, "loss")), truth, strict=True)]
        assert min(ratios) < 1 < 1.5 < statistics.median(ratios), way


def test_after_one_epoch_only_plain_is_ahead_in_running_statistics() -> None:
    for scene in ("images", "by class"):
        first = {
            way: statistics.median(curve[0] for curve in of(scene, way, "accuracy"))
            for way in SCENES[scene]
        }
        assert min(first, key=first.__getitem__) in ("exact", "big batch")
        assert max(first, key=first.__getitem__) == "plain"
