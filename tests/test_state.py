"""`restoring` and `Snapshot`: everything is as it was, also after an exception, also twice."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline._state import collecting_young_only, restoring, same_bits
from tests.everything import everything, forget_other_tests, without_versions
from tests.zoo import ZOO


class Boom(Exception):
    pass


def mlp() -> nn.Module:
    """Gradients, a mixture of modes and a hook, as in the middle of somebody's run."""
    model = ZOO["mlp_bn1d"].build()
    ZOO["mlp_bn1d"].loss(model, ZOO["mlp_bn1d"].batch()).backward()
    model.head.bias.requires_grad_(False)
    model.backbone[1].eval()
    model.backbone[1].register_forward_hook(lambda *_: None)
    return model


def _train(model: nn.Module) -> None:
    ZOO["mlp_bn1d"].loss(model, ZOO["mlp_bn1d"].batch()).backward()


def _step(model: nn.Module) -> None:
    _train(model)
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()


def _set_momentum(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.5
            module.eps = 1.0


def _hooks(model: nn.Module) -> None:
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
        module.register_forward_pre_hook(lambda *_: None)
        module.register_full_backward_hook(lambda *_: None)
        module.register_state_dict_post_hook(lambda *_: None)


def _replace(model: nn.Module) -> None:
    model.head = nn.Linear(16, 5)
    model.backbone[1].weight = nn.Parameter(torch.ones(16))
    model.backbone[1].register_buffer("running_mean", torch.zeros(16))
    del model.backbone[4]


def _attributes(model: nn.Module) -> None:
    model.anything = torch.zeros(3)
    model.backbone[0].forward = lambda x: x
    del model.backbone[1].momentum


def _other_memory(model: nn.Module) -> None:
    first, second, *_ = model.parameters()
    first.data = torch.zeros_like(first)
    second.data = model.head.bias.data
    model.backbone[1].running_mean.set_(torch.ones(16))


def _other_dtypes(model: nn.Module) -> None:
    model.half()
    model.head.weight.data = torch.zeros(2, 3, dtype=torch.float64)


def _swapped(model: nn.Module) -> None:
    torch.utils.swap_tensors(model.backbone[0].weight, nn.Parameter(torch.ones(3)))
    mine, other = model.backbone[1].running_var, model.backbone[1].running_mean
    del model.backbone[1].running_var, model.backbone[1].running_mean
    model.backbone[1].register_buffer("running_mean", mine)
    model.backbone[1].register_buffer("running_var", other)


def _not_persistent(model: nn.Module) -> None:
    model.head.register_buffer("cache", torch.ones(1), persistent=False)


def _grads(model: nn.Module) -> None:
    first, *rest = model.parameters()
    first.grad.fill_(7)
    for parameter in rest:
        parameter.grad = None


DISTURBANCES: dict[str, Callable[[nn.Module], None]] = {
    "modes": lambda model: model.eval(),
    "a mode written to __dict__": lambda model: vars(model.head).update(training=False),
    "a forward and a backward in train mode": _train,
    "an optimizer step": _step,
    "flags": lambda model: model.requires_grad_(False),
    "momentum and eps": _set_momentum,
    "hooks": _hooks,
    "replaced modules, parameters, buffers": _replace,
    "attributes": _attributes,
    "gradients": _grads,
    "statistics reset": lambda model: model.backbone[1].reset_running_stats(),
    "values through .data": lambda model: model.head.weight.data.fill_(float("nan")),
    "other memory under the same objects": _other_memory,
    "other dtypes and shapes": _other_dtypes,
    "swapped tensors": _swapped,
    "a buffer outside of the state dict": _not_persistent,
    "a frozen part": lambda model: fl.freeze(model, "backbone").undo(),
}


@pytest.mark.parametrize("raises", [False, True], ids=["normally", "with an exception"])
@pytest.mark.parametrize("disturb", DISTURBANCES.values(), ids=DISTURBANCES)
def test_everything_is_restored(disturb: Callable[[nn.Module], None], raises: bool) -> None:
    forget_other_tests()
    model = mlp()
    before = without_versions(everything(model))
    try:
        with restoring(model):
            disturb(model)
            if raises:
                raise Boom
    except Boom:
        assert raises
    assert without_versions(everything(model)) == before


def test_each_disturbance_is_one() -> None:
    """Without `restoring` each of them leaves a trace, so that the test above can fail."""
    for name, disturb in DISTURBANCES.items():
        if name == "a frozen part":
            continue
        model = mlp()
        before = everything(model)
        disturb(model)
        assert everything(model) != before, name


def test_values_false_leaves_bytes_alone() -> None:
    model = mlp()
    old = model.head.weight.detach().clone()
    with restoring(model, values=False):
        model.eval()
        model.head.weight.data += 1
    assert torch.equal(model.head.weight, old + 1)
    assert model.training


def test_a_saved_graph_can_still_go_backward() -> None:
    """Bytes are put back without a new version, else autograd would refuse the older graph."""
    model, entry = ZOO["mlp_bn1d"].build(), ZOO["mlp_bn1d"]
    loss = entry.loss(model, entry.batch())
    versions = [t._version for t in [*model.parameters(), *model.buffers()]]
    with restoring(model):
        pass
    assert [t._version for t in [*model.parameters(), *model.buffers()]] == versions
    loss.backward()


@pytest.mark.parametrize("raises", [False, True], ids=["normally", "with an exception"])
def test_random_generators(raises: bool) -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), float(np.random.rand())

    module = nn.Linear(1, 1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = draw()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    try:
        with restoring(module):
            assert draw() == expected
            torch.manual_seed(5)
            if raises:
                raise Boom
    except Boom:
        pass
    assert draw() == expected


def test_grad_mode() -> None:
    with restoring(nn.Linear(1, 1)):
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        with restoring(nn.Linear(1, 1)):
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
}


@pytest.mark.parametrize("fresh", [False, True], ids=["with state", "before its first step"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_optimizer(make: Callable[..., torch.optim.Optimizer], fresh: bool) -> None:
    model = mlp()
    optimizer = make(model.backbone.parameters())
    if not fresh:
        optimizer.step()
    before = without_versions(everything(model, optimizer))
    with restoring(model, optimizer=optimizer):
        _train(model)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 7
        optimizer.add_param_group({"params": [model.head.weight]})
    assert without_versions(everything(model, optimizer)) == before


def test_the_optimizer_goes_on_as_if_nothing_had_been() -> None:
    results = []
    for disturbed in (False, True):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        optimizer.step()
        if disturbed:
            with restoring(model, optimizer=optimizer):
                for _ in range(3):
                    _train(model)
                    optimizer.step()
        _train(model)
        optimizer.step()
        results.append(model.state_dict())
    assert all(same_bits(results[0][k], results[1][k]) for k in results[0])


def test_a_held_model_counts_no_ignored_call() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    with restoring(model):
        pass
    assert part.ignored_calls == []
    with restoring(model):
        model.train()
    assert part.ignored_calls == []
    assert part.ok


def test_a_freeze_inside_is_gone_and_not_half_there() -> None:
    model = mlp()
    with restoring(model):
        fl.freeze(model, "backbone")
    assert fl.parts(model) == []
    assert model.backbone[0].weight.requires_grad
    model.train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["resnet18", "wav2vec2", "gpt2", "lstm"])
def test_the_zoo(name: str) -> None:
    entry = ZOO[name]
    model = entry.build(steps=0)
    before = without_versions(everything(model))
    with restoring(model):
        entry.loss(model, entry.batch()).backward()
    assert without_versions(everything(model)) == before


def _two_steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):
        _train(model)
        optimizer.step()


SAME = {
    "equal": (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), True),
    "nan": (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
    "minus zero": (torch.tensor([0.0]), torch.tensor([-0.0]), False),
    "one bit": (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), False),
    "empty": (torch.zeros(0), torch.zeros(0), True),
    "0-dim": (torch.tensor(3), torch.tensor(3), True),
    "transposed": (torch.eye(2).T, torch.eye(2), True),
    "bool": (torch.tensor([True]), torch.tensor([False]), False),
    "complex": (torch.tensor([1j]), torch.tensor([1j]), True),
    "conjugate": (torch.tensor([1 + 1j]).conj(), torch.tensor([1 - 1j]), True),
    "not the conjugate": (torch.tensor([1 + 1j]).conj(), torch.tensor([1 + 1j]), False),
    "bfloat16": (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16), True),
}


@pytest.mark.parametrize(("a", "b", "same"), SAME.values(), ids=SAME)
def test_same_bits(a: torch.Tensor, b: torch.Tensor, same: bool) -> None:
    assert same_bits(a, b) is same


def test_only_young_objects_are_collected_inside() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    gc.collect()
    assert gc.get_freeze_count() == 0
    old = weakref.ref(Cycle())
    with collecting_young_only():
        young = weakref.ref(Cycle())
        gc.collect()
        assert old() is not None
        assert young() is None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert old() is None


def test_what_somebody_has_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        with collecting_young_only():
            assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
