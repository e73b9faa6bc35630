"""What stands round a window is as before, after success and after failures bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from frostline.accumulation.accumulate import accumulate
from tests.accumulation.exact.cases import CASES, HEAVY, Case, cut, each_of, even, size_of
from tests.accumulation.exact.truth import assert_is_big_batch, outcome
from tests.freezing.content import raw

offloads = pytest.mark.parametrize("offload", [None, "disk"])
# Each brings something that has to be put back: norms, iterations, copies of graphs, holds.
NAMES = [
    "timm resnet",
    "timm mobilenetv3",
    "checkpointed",
    "teacher after",
    "spectral norm, old",
    "spectral norm, new",
    "instance norm, tracked",
    "held norm",
    "shared norm, no momentum",
]
named = each_of((CASES[name] for name in NAMES), slow=HEAVY[1:])


# --- what is looked at -------------------------------------------------------------------------


def thread_state() -> dict[str, Any]:
    """What torch keeps for this thread."""
    torch.autocast_increment_nesting()
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "autocast depth": torch.autocast_decrement_nesting(),
        "function modes": _get_current_function_mode_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "saved-tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "multithreading": torch.autograd.is_multithreading_enabled(),
    }


def draws() -> list[bytes]:
    """The states of all generators."""
    state = np.random.get_state()
    return [
        torch.get_rng_state().numpy().tobytes(),
        repr(random.getstate()).encode(),
        state[1].tobytes() + repr(state[2:]).encode(),
    ]


def structure(model: nn.Module) -> list[dict[str, Any]]:
    """Everything that modules hold: objects by identity, containers by the identity of theirs."""

    def seen(value: Any) -> Any:
        if isinstance(value, dict):
            return id(value), [(key, id(inner)) for key, inner in value.items()]
        return value if isinstance(value, bool | int | float | str | None) else id(value)

    return [
        {"class": type(module)} | {name: seen(value) for name, value in vars(module).items()}
        for module in model.modules()
        if not isinstance(module, nn.Identity)
    ]


def weights(model: nn.Module) -> dict[str, Any]:
    """Parameters: bytes, flags."""
    return {name: (raw(p.detach()), p.requires_grad) for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, Any]:
    """The objects and their bytes."""
    found = {name: p.grad for name, p in model.named_parameters()}
    return {name: g if g is None else (id(g), raw(g)) for name, g in found.items()}


def buffers(model: nn.Module) -> dict[str, Any]:
    return {name: (id(b), raw(b)) for name, b in model.named_buffers()}


def stable(model: nn.Module) -> list[Any]:
    """What no window may change."""
    return [thread_state(), draws(), _without_weights(structure(model)), weights(model)]


def _without_weights(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The old spectral norm leaves the weight of the last forward in the module.
    return [{k: v for k, v in module.items() if k != "weight"} for module in found]


def everything(model: nn.Module) -> list[Any]:
    """What a failed window may not change."""
    return [*stable(model), gradients(model), buffers(model)]


class Passing(TorchFunctionMode):
    """Somebody's own mode, in force round the window."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Failure(Exception):
    """Raised by the user's code."""


# --- success -----------------------------------------------------------------------------------


@offloads
@named
def test_after_success(case: Case, offload: str | None) -> None:
    model, microbatches = case.build(), cut(case.big_batch(), even(size_of(case.batch()), 4))
    before = stable(model)
    identities = [id(buffer) for buffer in model.buffers()]
    accumulate(model, case.loss, microbatches, offload=offload)
    assert stable(model) == before
    assert [id(buffer) for buffer in model.buffers()] == identities


@offloads
def test_in_somebodys_surroundings(offload: str | None) -> None:
    """Modes, hooks and autocast that are in force outside stay, and change no number."""
    case = CASES["timm resnet"]
    model, microbatches = case.build(), cut(case.big_batch(), even(16, 4))
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.shape)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    disabled = torch.autocast("cpu", enabled=False, cache_enabled=False)
    with Passing(), hooks, disabled:
        before = stable(model)
        loss = accumulate(model, case.loss, microbatches, offload=offload)
        assert stable(model) == before
    assert packed or offload  # on disk, hooks of ours are inside of these
    assert_is_big_batch(case, outcome(model, loss, microbatches))


@offloads
def test_grad_mode_that_is_off_outside(offload: str | None) -> None:
    """Either it is refused in words, or it works; it is never left on."""
    case = CASES["unet"]
    model, microbatches = case.build(), cut(case.big_batch(), even(16, 4))
    with torch.no_grad():
        with pytest.raises(Exception, match="grad"):
            accumulate(model, case.loss, microbatches, offload=offload)
        assert not torch.is_grad_enabled()


# --- failures ----------------------------------------------------------------------------------


# The probes that come before a window use other numbers of samples.
ODD = 5


def with_an_odd_one(case: Case) -> list[Any]:
    """Four microbatches; the second one is where it fails."""
    total = size_of(case.batch())
    return cut(case.big_batch(), [1, ODD, 1, total - ODD - 2])


def _at_the_start(case: Case, model: nn.Module) -> Callable[..., Tensor]:
    """In the second microbatch, before its forward."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if size_of(batch) == ODD:
            raise Failure
        return case.loss(model, batch)

    return loss


def _in_the_middle(case: Case, model: nn.Module) -> Callable[..., Tensor]:
    """In the second microbatch, with modes entered, when all have passed some norms."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]

    def fail(module: nn.Module, inputs: Any) -> None:
        if len(inputs[0]) == ODD:
            raise Failure

    last.register_forward_pre_hook(fail)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False), Passing():
            hooks = torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda t: t)
            with hooks, torch.enable_grad():
                return case.loss(model, batch)

    return loss


def _without_gradients(case: Case, model: nn.Module) -> Callable[..., Tensor]:
    """While all wait at a norm inside no_grad, where the second one does not arrive."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            F.batch_norm(torch.arange(6.0).view(2, 3), None, None, training=True)
            if size_of(batch) == ODD:
                raise Failure
            F.batch_norm(torch.arange(6.0).view(2, 3), None, None, training=True)
        return case.loss(model, batch)

    return loss


def _in_backward(case: Case, model: nn.Module) -> Callable[..., Tensor]:
    """In the gradient of the second microbatch's loss."""

    def fail(gradient: Tensor) -> None:
        raise Failure

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = case.loss(model, batch)
        if size_of(batch) == ODD:
            found.register_hook(fail)
        return found

    return loss


def _late_in_backward(case: Case, model: nn.Module) -> Callable[..., Tensor]:
    """At the first layer, when most gradients stand in their places."""

    def fail(gradient: Tensor) -> None:
        raise Failure

    next(p for p in model.parameters() if p.requires_grad).register_hook(fail)
    return case.loss


def _after_accumulation(case: Case, model: nn.Module) -> Callable[..., Tensor]:
    """In a hook that sees the finished gradient of the first layer."""

    def fail(parameter: Tensor) -> None:
        raise Failure

    first = next(p for p in model.parameters() if p.requires_grad)
    first.register_post_accumulate_grad_hook(fail)
    return case.loss


FAILURES = [
    _at_the_start,
    _in_the_middle,
    _without_gradients,
    _in_backward,
    _late_in_backward,
    _after_accumulation,
]
failures = pytest.mark.parametrize("failing", FAILURES, ids=lambda f: f.__name__.strip("_"))


@offloads
@failures
@each_of((CASES[name] for name in NAMES), slow=HEAVY)
def test_after_a_failure(
    case: Case, failing: Callable[..., Callable[..., Tensor]], offload: str | None
) -> None:
    model = case.build()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.25)
    loss = failing(case, model)
    microbatches = with_an_odd_one(case)
    before = everything(model)
    with pytest.raises(Failure):
        accumulate(model, loss, microbatches, offload=offload)
    assert everything(model) == before


@offloads
@pytest.mark.parametrize("failing", [_in_the_middle, _in_backward], ids=["forward", "backward"])
def test_the_next_window_is_right(
    failing: Callable[..., Callable[..., Tensor]], offload: str | None
) -> None:
    case = CASES["spectral norm, new"]
    model, microbatches = case.build(), with_an_odd_one(case)
    with pytest.raises(Failure):
        accumulate(model, failing(case, model), microbatches, offload=offload)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    loss = accumulate(model, case.loss, microbatches, offload=offload)
    assert_is_big_batch(case, outcome(model, loss, microbatches))


@offloads
def test_an_interrupt_goes_through(offload: str | None) -> None:
    """Not only exceptions of users."""
    case = CASES["unet"]
    model, microbatches = case.build(), with_an_odd_one(case)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if size_of(batch) == ODD:
            raise KeyboardInterrupt
        return case.loss(model, batch)

    before = everything(model)
    with pytest.raises(KeyboardInterrupt):
        accumulate(model, loss, microbatches, offload=offload)
    assert everything(model) == before


@offloads
def test_a_backward_that_the_user_lets_fail(offload: str | None) -> None:
    case = CASES["unet"]
    model, microbatches = case.build(), cut(case.big_batch(), even(16, 4))

    def backward(loss: Tensor) -> None:
        loss.backward()
        raise Failure

    before = everything(model)
    with pytest.raises(Failure):
        accumulate(model, case.loss, microbatches, offload=offload, backward=backward)
    assert everything(model) == before
