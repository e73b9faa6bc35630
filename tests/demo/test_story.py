"""The story: what it says is what was measured, it is repeatable, and it leaves nothing behind."""

from __future__ import annotations

import json
import textwrap
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from frostline.demo.branches import steps
from frostline.demo.digits import load_digits
from frostline.demo.nets import DocumentNet, TwoBranches
from frostline.demo.reproducible import reproducible, seed
from frostline.demo.settings import Settings
from frostline.demo.story import Story, tell_story
from frostline.demo.ways import undoing_line
from frostline.errors import FrostlineError

SMALL = Settings(seeds=1, epochs=1)


@cache
def _small() -> Story:
    return tell_story(SMALL)


def test_control_drifts_and_holds_hold() -> None:
    story = _small()
    assert story.failures == []
    assert story.hard.first_change("flag") == story.hard.first_change("eval_once") == 1
    assert story.hard.first_change("eval_each_epoch") is None
    assert story.hard.first_change("freeze") is None
    assert story.document.flag.first_change == 1


def test_b_is_a_and_d_is_c_bit_for_bit() -> None:
    runs = _small().hard.runs
    assert runs["eval_once"] == runs["flag"]
    assert runs["freeze"] == runs["eval_each_epoch"]
    assert runs["freeze"] != runs["flag"]
    assert runs["eval_once"][0].training_mode == [True]
    assert runs["freeze"][0].training_mode == [False]


def test_accuracy_is_lost_on_inverted_digits_and_hardly_on_the_same() -> None:
    story = _small()
    before, after = (column[0] for column in story.hard.accuracy("flag"))
    assert before > 97
    assert before - after > 3
    mild = [column[0] for column in story.mild.accuracy("flag")]
    assert abs(mild[0] - mild[1]) < 1


def test_same_result_on_every_run_and_nothing_left_behind() -> None:
    torch.manual_seed(11)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    expected = json.dumps(_small().to_dict())
    torch.rand(100)  # Where the global generator stands must not matter.
    state = torch.get_rng_state()
    assert json.dumps(tell_story(SMALL).to_dict()) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_flags_come_back_also_after_an_exception() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    state = torch.get_rng_state()
    try:
        with pytest.raises(KeyError), reproducible():
            _seed_and_fail()
        assert torch.get_num_threads() == 2
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


def _seed_and_fail() -> None:
    assert torch.get_num_threads() == 1
    seed(5)
    raise KeyError


def test_without_momentum_the_control_fails() -> None:
    story = tell_story(Settings(seeds=1, epochs=1, momentum=0))
    assert not story.ok
    assert [failure.partition(":")[0] for failure in story.failures] == ["control"] * 3
    # The counters still count; what does not move is the output.
    assert {entry.name.rpartition(".")[2] for entry in story.why.moved if entry.changed} == {
        "num_batches_tracked"
    }


def test_formula_predicts_the_buffers() -> None:
    formula = _small().why.formula
    assert formula.largest_error < 1e-6
    for running, observed, predicted, found in (formula.mean, formula.variance):
        assert predicted == pytest.approx(0.9 * running + 0.1 * observed, abs=1e-15)
        assert found == pytest.approx(predicted, abs=1e-6)
        # The batch differs enough from the running value for the formula to be tested at all.
        assert abs(observed - running) > 1e-3
    biased = formula.variance[1] * (formula.values - 1) / formula.values
    assert formula.biased == pytest.approx(biased, rel=1e-12)
    assert formula.values == 64 * 8 * 8


def test_why_names_what_moved_and_only_that() -> None:
    why = _small().why
    assert why.trainable == ["second.0.weight", "second.0.bias", "second.2.weight", "second.2.bias"]
    assert (why.frozen_parameters, why.frozen_parameters_changed) == (11, 0)
    assert len(why.moved) == 9
    assert all(entry.changed == entry.elements for entry in why.moved)
    counters = [entry.by for entry in why.moved if entry.name.endswith("tracked")]
    assert counters == [19, 19, 19]  # 1200 images in batches of 64


def test_statistics_alone_bring_the_output_back() -> None:
    mended = _small().counterfactual
    assert mended.same_bits
    assert mended.after != mended.before == mended.restored
    assert len(mended.put_back) == 9


def test_attribution_agrees_with_the_run() -> None:
    story = _small()
    fault, run = story.attribution, story.hard.runs["flag"][0]
    assert fault.accuracy == (run.main[0], run.main[-1])
    assert fault.exact
    assert fault.total == pytest.approx(sum(row.change for row in fault.rows), abs=1e-12)
    assert max(fault.layers, key=lambda share: share.points or 0).name == "trunk.block1.norm"


def test_undoing_line_is_there() -> None:
    import frostline.demo.ways as module

    place, text = undoing_line()
    path, _, number = place.partition(":")
    lines = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    assert module.__file__.replace("\\", "/").endswith(path)
    assert lines[int(number) - 1].strip() == text == "model.train()"


def test_told_within_80_columns_in_order_and_ticked() -> None:
    said: list[str] = []
    ticks: list[str] = []
    story = tell_story(SMALL, say=said.append, tick=ticks.append)
    text = str(story)
    assert max(map(len, text.splitlines())) <= 80
    assert [chapter.partition(".")[0] for chapter in said] == ["1", "2", "3", "4"]
    assert "\n\n".join(said) == text[: text.index("\n\nYOUR TURN")]
    assert len(ticks) == steps(SMALL) == 7


def test_last_lines_run_on_a_users_model() -> None:
    turn = textwrap.dedent(str(_small()).partition("YOUR TURN")[2])
    command, _, code = turn.partition("import ")
    assert command.split()[:2] == ["frostline", "guard"]
    model = TwoBranches()
    model.trunk.requires_grad_(False)

    def train(net: nn.Module) -> None:
        net.train()
        net(load_digits().images[:8])

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The trunk was never trained, and freeze says so.
        exec(f"import {code}", {"model": model, "train": train})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_documents_network_has_the_documents_shape() -> None:
    net = DocumentNet()
    assert net.fc1.in_features == 576
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"seeds": 6}, {"epochs": 0}, {"momentum": 1.5}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(FrostlineError, match=next(iter(bad))):
        Settings(**bad)  # type: ignore[arg-type]


@pytest.mark.slow
def test_all_seeds() -> None:
    story = tell_story(Settings())
    assert story.ok, story.failures
    lost = [run.main[0] - run.main[-1] for run in story.hard.runs["flag"]]
    assert min(lost) > 5
