"""`undo` puts everything back: awkward starting states, overlapping parts in any order."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import frostline as fl
from frostline.freezing import applying
from frostline.freezing.record import put
from tests.freezing.kinds import KINDS, build
from tests.zoo import live


class Net(nn.Module):
    """Norms, dropout, a shared module, tied weights and a root parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 4))
        self.register_buffer("scale", torch.tensor([2.0]))
        self.embed = nn.Embedding(6, 4)
        self.body = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4, momentum=None)
        )
        self.again = self.body[1]
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.again(self.body(self.embed(ids) + self.token)) * self.scale)
        return out


def net() -> nn.Module:
    return live(Net())


IDS = torch.tensor([0, 1, 2, 3, 4, 5])


def some_flags_off(net: nn.Module) -> None:
    net.body[0].weight.requires_grad_(False)
    net.token.requires_grad_(False)


def some_in_eval(net: nn.Module) -> None:
    net.body[2].eval()
    net.body[3].eval()


def parent_in_eval_child_in_train(net: nn.Module) -> None:
    net.eval()
    net.body[1].train()


def with_gradients(net: nn.Module) -> None:
    net(IDS).sum().backward()


def with_hooks(net: nn.Module) -> None:
    net.body[0].register_forward_hook(_look)
    net.body[1].register_full_backward_hook(_look)
    net.body[3].register_forward_pre_hook(_look)


def _look(*_: Any) -> None:
    return None


def with_odd_momentum(net: nn.Module) -> None:
    net.body[1].momentum = 0.0
    net.body[1].track_running_stats = True


def with_untracked_flag(net: nn.Module) -> None:
    net.body[1].track_running_stats = False


def with_instance_attributes(net: nn.Module) -> None:
    net.body[1].note = "mine"
    net.body[0].forward = net.body[0].forward


def parametrised(net: nn.Module) -> None:
    parametrizations.weight_norm(net.body[0])


STATES: dict[str, Callable[[nn.Module], None]] = {
    "plain": lambda net: None,
    "everything in eval": lambda net: net.eval() and None,
    "everything frozen by flag": lambda net: net.requires_grad_(False) and None,
    "some flags off": some_flags_off,
    "some modules in eval": some_in_eval,
    "a parent in eval, its child in training": parent_in_eval_child_in_train,
    "gradients present": with_gradients,
    "hooks": with_hooks,
    "momentum 0": with_odd_momentum,
    "track_running_stats switched off": with_untracked_flag,
    "attributes of the instance": with_instance_attributes,
    "parametrised": parametrised,
}

# Ways to freeze; the tied weight is covered whole or not at all.
FREEZES: dict[str, dict[str, Any]] = {
    "all": {},
    "body": {"select": "body"},
    "norm, batch": {"select": "body.1", "stats": "batch", "mode": "follow"},
    "norms, update": {"select": nn.BatchNorm1d, "stats": "update"},
    "flags left": {"params": False},
    "tied": {"select": ["embed", "head"]},
    "root tensors": {"select": ["token", "scale"]},
}


def look(net: nn.Module) -> dict[str, Any]:
    """Everything about a model that a freeze might touch; objects by identity."""
    seen: dict[str, Any] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        own = vars(module)
        seen[f"{path} class"] = type(module)
        seen[f"{path} keys"] = list(own)
        for key, value in own.items():
            content = isinstance(value, dict)
            seen[f"{path} {key}"] = [(k, id(v)) for k, v in value.items()] if content else id(value)
        for name, p in module._parameters.items():
            if p is not None:
                grad = p.grad
                seen[f"{path}.{name} parameter"] = (
                    p.requires_grad,
                    id(grad),
                    None if grad is None else grad.tolist(),
                    p.tolist(),
                    p._version,
                )
        for name, b in module._buffers.items():
            if b is not None:
                seen[f"{path}.{name} buffer"] = (b.tolist(), b._version)
    return seen


def without_dict_order(seen: dict[str, Any]) -> dict[str, Any]:
    return {k: sorted(v) if k.endswith(" keys") else v for k, v in seen.items()}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    before, after = without_dict_order(before), without_dict_order(after)
    assert [k for k in before if before[k] != after.get(k)] == []
    assert list(before) == list(after)


pytestmark = pytest.mark.filterwarnings("ignore::frostline.errors.FrostlineWarning")


@pytest.mark.parametrize("freeze", FREEZES)
@pytest.mark.parametrize("state", STATES)
def test_undo_restores(state: str, freeze: str) -> None:
    model = net()
    STATES[state](model)
    before = look(model)
    part = fl.freeze(model, **FREEZES[freeze])
    # Near miss: the look sees the freeze.
    assert look(model) != before
    part.undo()
    assert_same(before, look(model))
    part.undo()  # a second time does nothing
    assert_same(before, look(model))


PAIRS = [
    pair
    for pair in itertools.combinations_with_replacement(FREEZES, 2)
    if "norms, update" not in pair or "all" in pair
]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first in", "last in"])
@pytest.mark.parametrize("pair", PAIRS, ids=[" and ".join(p) for p in PAIRS])
@pytest.mark.parametrize("state", STATES)
def test_undo_of_two_parts_in_any_order(
    state: str, pair: tuple[str, str], order: tuple[int, int]
) -> None:
    model = net()
    STATES[state](model)
    before = look(model)
    parts = [fl.freeze(model, **FREEZES[name]) for name in pair]
    parts[order[0]].undo()
    assert fl.parts(model) == [parts[order[1]]]
    parts[order[1]].undo()
    assert_same(before, look(model))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_undo_of_three_parts_in_any_order(order: tuple[int, ...]) -> None:
    model = net()
    for state in (some_flags_off, some_in_eval, with_gradients):
        state(model)
    before = look(model)
    parts = [fl.freeze(model, **FREEZES[name]) for name in ("all", "norm, batch", "tied")]
    for i in order:
        parts[i].undo()
    assert_same(before, look(model))


@pytest.mark.parametrize("kind", KINDS)
def test_undo_restores_every_kind(kind: str) -> None:
    model, x = build(kind), KINDS[kind].inputs()
    model(x).sum().backward()
    before = look(model)
    part = fl.freeze(model, "part")
    part.undo()
    assert_same(before, look(model))


def test_after_training_only_what_trained_differs() -> None:
    model, x = build("BatchNorm2d"), KINDS["BatchNorm2d"].inputs()
    model(x).sum().backward()
    before = {k: v for k, v in look(model).items() if k.startswith("part")}
    part = fl.freeze(model, "part")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        model.train()(x).sum().backward()
        optimizer.step()
    part.undo()
    assert_same(before, {k: v for k, v in look(model).items() if k.startswith("part")})


def test_end_of_with_and_exception_undo() -> None:
    model = net()
    before = look(model)
    with pytest.raises(ZeroDivisionError), fl.freeze(model):
        _ = 1 / (len(fl.parts(model)) - 1)
    assert_same(before, look(model))


def test_undo_leaves_a_class_that_somebody_else_swapped_meanwhile() -> None:
    model = net()
    part = fl.freeze(model, "body")
    held = type(model.body[1])

    class Theirs(held):  # type: ignore[valid-type, misc]
        pass

    model.body[1].__class__ = Theirs
    part.undo()
    assert type(model.body[1]) is Theirs
    assert model.body[1].training is True
    model.train()
    before = model.body[1].num_batches_tracked.item()
    model(IDS)
    # It is held no more: the shared norm counts twice a forward.
    assert model.body[1].num_batches_tracked.item() == before + 2


def test_undo_below_a_parametrisation_added_meanwhile() -> None:
    model = net()
    part = fl.freeze(model, "body", params=False)
    with torch.no_grad():
        parametrizations.weight_norm(model.body[1])
    part.undo()
    assert parametrize.is_parametrized(model.body[1])
    parametrize.remove_parametrizations(model.body[1], "weight")
    assert model.body[1].training is True
    model.train()(IDS)


def test_undo_restores_optimizer_state_and_groups() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(IDS).sum().backward()
    optimizer.step()
    groups = [id(p) for group in optimizer.param_groups for p in group["params"]]
    state = {id(p): id(values) for p, values in optimizer.state.items()}
    part = fl.freeze(model, "body", optimizer=optimizer)
    assert set(map(id, optimizer.state)).isdisjoint(map(id, model.body.parameters()))
    part.undo()
    assert {id(p): id(values) for p, values in optimizer.state.items()} == state
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == groups


def test_undo_keeps_no_model_alive() -> None:
    model = net()
    part = fl.freeze(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    part.undo()


def test_undo_reaches_what_has_left_the_model() -> None:
    model = net()
    body = model.body
    before = look(body)
    part = fl.freeze(model, "body")
    other = nn.Sequential(body, nn.Linear(4, 1))
    model.body, model.again = nn.Identity(), nn.Identity()
    # Near miss: it is held as long as nobody undoes.
    assert other.train()[0][1].training is False
    part.undo()
    assert_same(before, look(body))
    assert other.train()[0][1].training is True


@pytest.mark.parametrize("first", ["its own handle", "the handle of the piece"])
def test_undo_of_a_piece_whose_model_is_gone(first: str) -> None:
    model = net()
    body = model.body
    before = look(body)
    part = fl.freeze(model, "body")
    del model
    gc.collect()
    handles = [part, *fl.parts(body)]
    assert len(handles) == 2
    for handle in handles if first == "its own handle" else reversed(handles):
        handle.undo()
        assert body[0].weight.requires_grad
        assert type(body[1]) is nn.BatchNorm1d
    assert_same(before, look(body))


def test_undo_gives_inference_tensors_their_flags_back() -> None:
    with torch.inference_mode():
        model = net()
    part = fl.freeze(model, "body")
    assert not model.body[0].weight.requires_grad
    part.undo()
    assert model.body[0].weight.requires_grad


def test_undo_inside_released_is_not_taken_back_at_its_exit() -> None:
    model = net()
    before = look(model)
    part, other = fl.freeze(model, "body"), fl.freeze(model, "scale")
    with other.released():
        part.undo()
    assert fl.parts(model) == [other]
    assert model.body[0].weight.requires_grad
    assert model.train().body[1].training is True
    other.undo()
    assert_same(before, look(model))


def test_interrupted_between_the_class_and_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    before = look(model)

    def interrupted(module: nn.Module, *_: Any) -> None:
        if type(module) is not nn.BatchNorm1d and isinstance(module, nn.BatchNorm1d):
            raise KeyboardInterrupt
        put(module, *_)

    monkeypatch.setattr(applying, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fl.freeze(model, "body")
    assert_same(before, look(model))


def train(model: nn.Module) -> None:
    """A loop that saves each mode before a validation and writes it back after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for module, mode in modes.items():
        module.training = mode


def test_a_mode_written_back_is_no_wish_even_in_a_function_called_train() -> None:
    model = net()
    part = fl.freeze(model, "body")
    train(model)
    part.undo()
    assert model.body[3].training is True
    # Near miss: the method of that name is a wish.
    part = fl.freeze(model, "body")
    model.eval()
    part.undo()
    assert model.body[3].training is False
