"""Every kind of module times everything that may happen: not one byte of a frozen part changes.

Beside each action stands its control: the same with the part frozen by `requires_grad=False`
alone, and exactly which kinds it changes then.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from tests.freezing.actions import ACTIONS, Action
from tests.freezing.kinds import KINDS, ROOT_TENSORS, Net, build

State = dict[str, Tensor]


def selector(kind: str) -> list[str]:
    return ["part", *ROOT_TENSORS] if kind == "root parameters" else ["part"]


def state_of(net: nn.Module) -> State:
    """Every parameter and buffer of the frozen part, those included that are never saved."""
    everything = {
        **dict(net.named_parameters(remove_duplicate=False)),
        **dict(net.named_buffers(remove_duplicate=False)),
    }
    return {n: t for n, t in everything.items() if n.startswith("part.") or n in ROOT_TENSORS}


def copied(state: State) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def raw(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def moved(before: State, after: State) -> list[str]:
    assert list(before) == list(after)
    return [
        name
        for name, old in before.items()
        if old.dtype != after[name].dtype
        or old.shape != after[name].shape
        or (old.numel() and not torch.equal(raw(old), raw(after[name])))
    ]


def saved_part(net: nn.Module) -> State:
    return {k: v for k, v in net.state_dict().items() if k.startswith("part.") or k in ROOT_TENSORS}


def prepare(kind: str, action: Action) -> tuple[Net, Tensor, torch.optim.Optimizer | None]:
    net, x = build(kind), KINDS[kind].inputs()
    return net, x, action.before(net, x) if action.before is not None else None


def kinds_for(action: str) -> list[str]:
    return [k for k, kind in KINDS.items() if kind.pickles or not ACTIONS[action].pickles]


TABLE = [(kind, action) for action in ACTIONS for kind in kinds_for(action)]


@pytest.mark.parametrize(("kind", "action"), TABLE, ids=[f"{k}, {a}" for k, a in TABLE])
def test_held(kind: str, action: str) -> None:
    net, x, optimizer = prepare(kind, ACTIONS[action])
    before, saved = copied(state_of(net)), copied(saved_part(net))

    part = fl.freeze(net, selector(kind))
    after = ACTIONS[action].run(net, x, optimizer)

    for model in {id(net): net, id(after): after}.values():
        assert moved(before, state_of(model)) == []
        assert moved(saved, saved_part(model)) == []
        (of_model,) = fl.parts(model)
        assert of_model.changes() == []
    assert part.ok


def flag_only(net: Net, kind: str) -> None:
    for parameter in net.part.parameters():
        parameter.requires_grad_(False)
    if kind == "root parameters":
        net.get_parameter("cls_token").requires_grad_(False)


# Where an action spares a kind that writes to itself, and why.
SPARED = {
    # torch refuses to write batched values into unbatched tensors; the counters it lets through.
    "vmap": {
        "InstanceNorm1d, tracking",
        "InstanceNorm2d, tracking",
        "InstanceNorm3d, tracking",
        "VQ codebook, rebound",
        "FakeQuantize",
        "FakeQuantize, fused",
        "observers",
        "HistogramObserver",
        "Embedding(max_norm)",
        "EmbeddingBag(max_norm)",
        "MoE bias",
        "non-persistent statistic",
    },
    # The new tensors land in the stateless copy.
    "functional_call": {"VQ codebook, rebound"},
}


def expected_to_move(action: str) -> set[str]:
    moves = ACTIONS[action].moves
    chosen = {
        name
        for name in kinds_for(action)
        if (KINDS[name].norm and moves == "norms")
        or (KINDS[name].writes and "writers" in moves)
        or (KINDS[name].parameters and "with parameters" in moves)
    }
    return chosen - SPARED.get(action, set())


@pytest.mark.parametrize("action", ACTIONS)
def test_control_moves_when_frozen_by_flag_only(action: str) -> None:
    changed: set[str] = set()
    for kind in kinds_for(action):
        if (kind, action) == ("VQ codebook, rebound", "vmap"):
            continue  # leaves a tensor behind that only vmap can read
        net, x, optimizer = prepare(kind, ACTIONS[action])
        before = copied(state_of(net))
        flag_only(net, kind)
        if moved(before, state_of(ACTIONS[action].run(net, x, optimizer))):
            changed.add(kind)
    assert changed == expected_to_move(action)


@pytest.mark.parametrize("action", [a for a in ACTIONS if "three steps" in a])
def test_the_rest_trains(action: str) -> None:
    net, x, optimizer = prepare("BatchNorm1d", ACTIONS[action])
    fl.freeze(net, "part")
    before = copied(dict(net.named_parameters()))
    ACTIONS[action].run(net, x, optimizer)
    moving = {n for n, p in net.named_parameters() if not torch.equal(before[n], p)}
    assert moving == {n for n in before if not n.startswith("part.")}
