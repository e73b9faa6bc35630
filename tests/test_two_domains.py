"""The experiment behind docs/two-domains.md, in small, and that the page has its stored figures."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from bench import two_domains
from frostline.demo import branches, ways
from frostline.demo.digits import Digits
from frostline.demo.nets import TwoBranches
from frostline.demo.reproducible import reproducible
from frostline.demo.settings import Settings

RECORD: dict[str, Any] = json.loads(two_domains.RESULTS.read_text())
READINGS = {way.key: (way, readings) for way, readings in two_domains.READINGS}

Start = tuple[TwoBranches, tuple[Digits, Digits], Tensor]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """A trained base, a few faded digits for the second branch, test images of the first."""
    with reproducible():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(branches, "TRUNK_EPOCHS", 2)  # to save seconds
            base, training, test = branches.trained_base(0, Settings(seeds=1))
        noise = torch.Generator().manual_seed(0)
        few = torch.arange(320)
        data = two_domains.faded(training[few], noise), two_domains.faded(test[few], noise)
        yield base, data, test.images


def run(start: Start, key: str) -> two_domains.Run:
    base, data, images = start
    return two_domains.second_branch(base, *READINGS[key], images, data, epochs=1)


def buffers(module: nn.Module) -> list[Tensor]:
    return list(module.buffers())


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("key", ["held", "batch"])
def test_one_trunk_stays_as_it_was(start: Start, key: str) -> None:
    trained = run(start, key)
    assert trained.model.trunk is trained.original
    assert equal(buffers(trained.original), buffers(start[0].trunk))
    assert equal(list(trained.original.parameters()), list(start[0].trunk.parameters()))
    assert not equal(list(trained.model.second.parameters()), list(start[0].second.parameters()))


def test_own_statistics_move_and_the_first_ones_do_not(start: Start) -> None:
    trained = run(start, "own")
    own, original = trained.model.trunk, trained.original
    assert equal(buffers(original), buffers(start[0].trunk))
    pairs = zip(buffers(own), buffers(original), strict=True)
    assert not any(torch.equal(moved, old) for moved, old in pairs)
    shared = zip(own.parameters(), original.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in shared)
    assert equal(list(own.parameters()), list(start[0].trunk.parameters()))


def test_the_batch_and_the_old_statistics_are_two_tests(start: Start) -> None:
    trained, test = run(start, "batch"), start[1][1]
    assert trained.accuracy.keys() == {"batch, batch", "batch, held"}
    modes: list[bool] = []
    hook = trained.model.norms()[0].register_forward_pre_hook(
        lambda norm, _: modes.append(norm.training)
    )
    two_domains.batchwise(trained.model, test)
    assert modes == [True] * -(-len(test) // ways.BATCH)
    modes.clear()
    two_domains.running(trained.model, test)
    assert modes == [False]
    hook.remove()


def test_testing_with_the_batch_leaves_the_statistics_alone(start: Start) -> None:
    model = run(start, "batch").model
    before = copy.deepcopy(buffers(model))
    two_domains.batchwise(model, start[1][1])
    assert equal(buffers(model), before)
    assert not any(norm.training for norm in model.norms())


def test_the_same_seed_gives_the_same_figures(start: Start) -> None:
    assert run(start, "own").accuracy == run(start, "own").accuracy


def test_a_first_branch_that_changes_stops_the_experiment(start: Start) -> None:
    base, data, images = start
    moving = ways.Way(
        "moving", "z", "", "", lambda model: fl.freeze(model.main), two_domains._nothing
    )
    with pytest.raises(AssertionError, match="moving: the first branch gives other outputs"):
        two_domains.second_branch(base, moving, {}, images, data, epochs=1)


def test_marks_are_epochs_that_exist() -> None:
    assert two_domains.marks(15) == [5, 10, 15]
    assert two_domains.marks(2) == [1, 2]
    assert two_domains.marks(1) == [1]


def test_a_small_measurement_has_the_shape_of_the_stored_one(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, (training, test), _ = start
    monkeypatch.setattr(branches, "trained_base", lambda *_: (base, training, test))
    small = Settings(seeds=1, epochs=1)
    record = two_domains.measure(small)
    assert record.keys() == RECORD.keys()
    assert record["settings"] == {**RECORD["settings"], **small.to_dict()}
    assert json.loads(json.dumps(record)) == record
    for key, domain in record["domains"].items():
        assert len(domain["first_branch"]) == 1
        assert domain["accuracy"].keys() == RECORD["domains"][key]["accuracy"].keys()
        assert all([*map(len, seeds)] == [1] for seeds in domain["accuracy"].values())
    assert two_domains.tell(record).count("---") == two_domains.tell(RECORD).count("---") - 2


# --- what is stored, and what the page says of it --------------------------------------------


def test_the_page_has_the_stored_figures() -> None:
    page = two_domains.PAGE.read_text()
    assert two_domains.filled(page, RECORD) == page
    assert "| own - held, after epoch |" in page
    other = copy.deepcopy(RECORD)
    other["domains"]["faded"]["accuracy"]["own"][0][-1] += 40
    assert two_domains.filled(page, other) != page


def test_the_stored_results_come_from_these_settings() -> None:
    assert RECORD["settings"] == two_domains.conditions(Settings(epochs=two_domains.EPOCHS))
    marks = RECORD["after_epochs"]
    assert marks == two_domains.marks(two_domains.EPOCHS)
    for domain in (RECORD["domains"][key] for key in two_domains.DOMAINS):
        assert len(domain["first_branch"]) == 5
        assert list(domain["accuracy"]) == two_domains.COLUMNS
        shapes = {tuple(map(len, seeds)) for seeds in domain["accuracy"].values()}
        assert shapes == {(len(marks),) * 5}


ACCURACY = {key: RECORD["domains"][key]["accuracy"] for key in two_domains.DOMAINS}


def test_what_the_page_says_of_own_statistics() -> None:
    gains = {key: two_domains._gains(accuracy)[-1] for key, accuracy in ACCURACY.items()}
    assert min(gains["faded"]) > 0  # "won with every seed"
    for key in ("same", "inverted"):  # "no difference", "no gain that exceeds its range"
        assert min(gains[key]) < 0 < max(gains[key])


def test_what_the_page_says_of_the_batch() -> None:
    for key in ("inverted", "faded"):  # "the worst of all, and differs most from seed to seed"
        last = {column: [s[-1] for s in seeds] for column, seeds in ACCURACY[key].items()}
        middle = {column: statistics.median(values) for column, values in last.items()}
        width = {column: max(values) - min(values) for column, values in last.items()}
        assert min(middle, key=middle.__getitem__) == "batch, held"
        assert max(width, key=width.__getitem__) == "batch, held"
        assert abs(middle["batch, batch"] - middle["own"]) < 1  # "about what own statistics give"


def test_the_verdict_names_what_wins_by_more_than_a_point() -> None:
    said = two_domains._verdict({"faded": [1.0, 1.1, 9.0], "same": [1.0, 1.0, 9.0]})
    assert said.endswith("by more than one point on: faded digits (+1.1 [+1.0, +9.0] points).\n")
    assert two_domains._verdict({"same": [0.0]}).endswith("nowhere.\n")
