"""Who holds what: a sample computed again, the pages, and a harness that can see a bad way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.ao.quantization import disable_observer

from tests.freezing.kinds import KINDS, Net, build
from tests.freezing.test_hold_table import kinds_for
from tests.peers import pages, results, tables
from tests.peers.matrix import (
    ACTIONS,
    AS_IN_EVAL,
    HOLDS,
    UNDOS,
    back,
    cell,
    computed,
    eval_output,
    look,
    row,
    rows_of,
    run_part,
    train_output,
    undone,
    verdict,
)
from tests.peers.ways import WAYS, Way

VERSIONS, STORED = results.read()
by_way = pytest.mark.parametrize("way", WAYS)

# --- what is stored ----------------------------------------------------------------------------

EVERY_KIND = ("model.train()", "update_bn")
EVERY_ROW = ("BatchNorm2d", "Embedding(max_norm)", "root parameters")


@by_way
def test_every_kind_under_some_actions_is_as_stored(way: str) -> None:
    for name in EVERY_KIND:
        assert row(WAYS[way], name) == STORED[way][name], f"{name}: run make peers"


@by_way
@pytest.mark.parametrize("kind", EVERY_ROW)
def test_some_kinds_under_every_action_are_as_stored(way: str, kind: str) -> None:
    found = {name: row(WAYS[way], name, [kind])[kind] for name in rows_of(WAYS[way])}
    assert found == {name: STORED[way][name][kind] for name in found}, "run make peers"


@pytest.mark.slow
@by_way
def test_all_is_as_stored(way: str) -> None:
    assert computed(WAYS[way]) == STORED[way], "run make peers"


def test_stored_with_the_installed_libraries() -> None:
    assert results.versions() == VERSIONS, "run make peers"


def test_ours_hold_everywhere() -> None:
    ours = STORED["frostline"]
    for name in (*ACTIONS, *UNDOS, AS_IN_EVAL):
        assert set(ours[name].values()) == {HOLDS}, name


def test_the_expert_is_no_straw_man() -> None:
    """No other peer holds anything that the expert does not."""
    expert = STORED["expert"]
    for way in STORED.keys() - {"frostline"}:
        for action in ACTIONS:
            held = {kind for kind, outcome in STORED[way][action].items() if outcome == HOLDS}
            assert held <= {k for k, o in expert[action].items() if o == HOLDS}, (way, action)


def test_every_peer_holds_somewhere_and_fails_somewhere() -> None:
    for way in STORED.keys() - {"frostline"}:
        found = {outcome == HOLDS for a in ACTIONS for outcome in STORED[way][a].values()}
        assert found == {True, False}, way


# --- the pages ---------------------------------------------------------------------------------


def test_the_pages_show_what_is_stored() -> None:
    assert pages.stale() == [], "run python -m tests.peers, or make peers"


def test_only_what_is_between_the_markers_is_written() -> None:
    text = f"before\n{pages.START}\nold\n{pages.END}\nafter\n"
    assert pages.between(text, "new") == f"before\n{pages.START}\nnew\n{pages.END}\nafter\n"
    for unmarked in ("", "text", pages.START, pages.END, f"{pages.END}{pages.START}"):
        assert pages.between(unmarked, "new") == unmarked


def test_the_tables_follow_the_results() -> None:
    """A cell of ours that does not hold is seen in both tables and in the sentence."""
    other = {way: {name: dict(o) for name, o in rows.items()} for way, rows in STORED.items()}
    other["frostline"]["vmap"]["Dropout"] = "moved part.0.weight"
    text = tables.page(VERSIONS, other)
    assert "Only the expert holds: Dropout (1)." in text
    assert "- **frostline**: `weight` 1\n" in text
    assert tables.short(other) != tables.short(STORED)
    assert len(tables.short(STORED).splitlines()) <= 10


# --- the harness can tell ----------------------------------------------------------------------

NOTHING = Way("nothing", "", lambda net, _: None, undo=lambda net, _: None)
FROZEN = WAYS["frostline"]


def test_a_way_that_does_nothing_is_seen() -> None:
    for name in ("momentum from before", "model.train()"):
        moved = {kind for kind, outcome in row(NOTHING, name).items() if outcome != HOLDS}
        writers = {kind for kind in kinds_for(name) if KINDS[kind].writes}
        trained = {kind for kind in kinds_for(name) if KINDS[kind].parameters}
        assert moved == (writers | trained if "momentum" in name else writers)


def test_one_tensor_is_enough() -> None:
    held = WAYS["disabled_train"]
    action = "gradients written by hand"

    def forget_the_bias(net: Net, _: object) -> None:
        held.freeze(net, None)
        net.part[0].bias.requires_grad_(True)

    def drop_the_counter(net: Net, _: object) -> None:
        held.freeze(net, None)
        net.part[1].num_batches_tracked = None

    def write(net: Net, _: object) -> None:
        held.freeze(net, None)
        net.part[1].running_var.view(torch.uint8)[-1] += 1

    outcomes = {
        forget_the_bias: "moved part.0.bias",
        drop_the_counter: "missing part.1.num_batches_tracked",
        write: "moved part.1.running_var",
        held.freeze: HOLDS,
    }
    for freeze, outcome in outcomes.items():
        assert cell(replace(held, freeze=freeze), "BatchNorm2d", action) == outcome


def test_an_action_that_raises_does_not_hold() -> None:
    def refuse(net: Net, _: object) -> None:
        raise ValueError(f"not {object()}\nand so on")

    outcome = cell(replace(NOTHING, freeze=refuse), "Dropout", "vmap")
    assert outcome == "raises ValueError: not <object object at 0x…>"


def test_a_cast_a_shape_and_a_missing_tensor_are_seen() -> None:
    one = {"a": torch.ones(2), "b": torch.zeros(0)}
    assert verdict(one, [one, {**one, "new": torch.ones(1)}]) == HOLDS
    assert verdict(one, [one, {**one, "a": torch.ones(2).double()}]) == "moved a"
    assert verdict(one, [{**one, "a": torch.ones(1, 2)}]) == "moved a"
    assert verdict(one, [one, {"a": one["a"]}]) == "missing b"
    assert verdict(one, [{"a": -one["a"]}]) == "moved a"


def test_the_loop_comes_after_its_own_train_only() -> None:
    seen: list[str] = []
    way = replace(NOTHING, at_epoch=lambda net: seen.append(type(net).__name__))
    for action, count in {"model.train()": 1, "deepcopy": 2, "update_bn": 0}.items():
        seen.clear()
        cell(way, "Dropout", action)
        assert seen == ["Net"] * count
    assert "train" not in vars(Net)


def test_a_new_optimizer_leaves_stale_gradients_alone() -> None:
    flagged = WAYS["flag"]
    for action in ("three steps of SGD", "gradients written by hand"):
        assert cell(flagged, "Dropout", action) == "moved part.0.weight"
        assert cell(replace(flagged, new_optimizer=True), "Dropout", action) == HOLDS


def test_outputs_that_differ_are_seen() -> None:
    def negate(net: Net, _: object) -> None:
        net.part[0].weight.data.neg_()

    assert eval_output(replace(NOTHING, freeze=negate), "Dropout") == "differs"
    assert eval_output(NOTHING, "Dropout") == HOLDS
    assert train_output(NOTHING, "Dropout") == "differs"


def test_an_undo_that_leaves_something_is_seen() -> None:
    assert undone(NOTHING, "BatchNorm2d") == HOLDS
    leftovers = {
        "settings part.1": lambda norm: setattr(norm, "momentum", 0.5),
        "class part.1": lambda norm: setattr(norm, "__class__", nn.InstanceNorm2d),
        "requires_grad part.1.weight": lambda norm: norm.weight.requires_grad_(False),
        "moved part.1.running_mean": lambda norm: norm.running_mean.add_(1),
        "object part.1.weight": lambda norm: setattr(
            norm, "weight", nn.Parameter(norm.weight.detach().clone())
        ),
    }
    for found, leave in leftovers.items():
        net = build("BatchNorm2d")
        before = look(net)
        assert back(before, look(net)) == HOLDS
        leave(net.part[1])
        assert back(before, look(net)) == found


@pytest.mark.parametrize("kind", ["FakeQuantize", "FakeQuantize, fused"])
def test_a_frozen_fake_quantize_keeps_to_its_range(kind: str) -> None:
    """Why the page says that its output differs: unfrozen, it observes in eval mode too."""
    observing, still, frozen = (build(kind).eval() for _ in range(3))
    still.part.apply(disable_observer)
    FROZEN.freeze(frozen, None)
    assert torch.equal(run_part(frozen, kind), run_part(still, kind))
    assert not torch.equal(run_part(still, kind), run_part(observing, kind))
