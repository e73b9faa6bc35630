"""What microbatches could leave for each other: attributes, hooks, switches, nets outside.

Each comes out as the big batch's numbers or as an error, and nothing stays behind.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from frostline.accumulation.accumulate import accumulate
from frostline.errors import AccumulationError
from tests.accumulation.exact.case_models import (
    WIDTH,
    Classifier,
    Discriminator,
    Shuffle,
    conv_norm,
)
from tests.accumulation.exact.cases import IMAGES, Batch, Case, cut
from tests.accumulation.exact.test_or_raised import exact_or_raised
from tests.accumulation.exact.test_restored import everything
from tests.zoo import classify, live

offloads = pytest.mark.parametrize("offload", [None, "disk"])


class _Memory(Classifier):
    """Keeps features of the last forward, without their graph, and uses those of before."""

    def __init__(self) -> None:
        super().__init__()
        self.block = conv_norm(WIDTH, WIDTH)
        self.last: Tensor | None = None

    def middle(self, x: Tensor) -> Tensor:
        before, self.last = self.last, x.detach().mean((0, 2, 3), keepdim=True)
        return self.block(x if before is None else x + before)


@offloads
def test_a_memory_of_the_sample_before(offload: str | None) -> None:
    """Microbatches see each other through an attribute of the model."""
    assert exact_or_raised(Case("memory", _Memory, IMAGES), offload) is None


class _LeavesBehind(Classifier):
    """Leaves features in an attribute, which the loss reads after the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv_norm(WIDTH, WIDTH) for _ in range(2))
        self.features: Tensor | None = None

    def middle(self, x: Tensor) -> Tensor:
        self.features = self.blocks[0](x)
        return self.blocks[1](self.features)


def _read_attribute(model: _LeavesBehind, batch: tuple[Tensor, Tensor]) -> Tensor:
    loss = classify(model, batch)
    return loss + 0.1 * model.features.square().mean()


@offloads
def test_features_that_a_model_leaves_in_an_attribute(offload: str | None) -> None:
    case = Case("left behind", _LeavesBehind, IMAGES, _read_attribute)
    exact_or_raised(case, offload)


class _Collected:
    """Features that a hook, registered once for all, leaves in a dict."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}

    def hook(self, model: _LeavesBehind) -> None:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.features["block"] = output

        model.blocks[0].register_forward_hook(keep)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = classify(model, batch)
        return loss + 0.1 * self.features["block"].square().mean()


@offloads
def test_features_that_a_hook_leaves_in_a_dict(offload: str | None) -> None:
    collected = _Collected()
    case = Case("collected", _LeavesBehind, IMAGES, collected.loss, collected.hook)
    exact_or_raised(case, offload)


def _with_a_hook_for_the_call(model: _LeavesBehind, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Registered and removed by each call of the loss."""
    features: list[Tensor] = []
    hook = model.blocks[0].register_forward_hook(lambda m, i, o: features.append(o))
    try:
        loss = classify(model, batch)
    finally:
        hook.remove()
    return loss + 0.1 * features[0].square().mean()


@offloads
def test_a_hook_for_one_call_of_the_loss(offload: str | None) -> None:
    case = Case("hook for the call", _LeavesBehind, IMAGES, _with_a_hook_for_the_call)
    exact_or_raised(case, offload)


# --- switches of the whole process, entered and left by each microbatch ------------------------


@contextmanager
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def _switches() -> list[Any]:
    return [
        torch.is_anomaly_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        list(warnings.filters),
        torch.backends.cuda.math_sdp_enabled(),
    ]


SWITCHES = {
    "anomaly detection": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "default dtype": _default_dtype,
    "deterministic algorithms": _deterministic,
    "warnings": _quiet,
    "attention kernel": lambda: sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@offloads
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_that_each_microbatch_turns(switch: str, offload: str | None) -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with SWITCHES[switch]():
            return classify(model, batch)

    before = _switches()
    try:
        exact_or_raised(Case(switch, Shuffle, IMAGES, loss), offload)
        assert _switches() == before
    finally:
        torch.autograd.set_detect_anomaly(before[0])
        torch.set_default_dtype(before[1])
        torch.use_deterministic_algorithms(before[2])
        torch.backends.cuda.enable_math_sdp(before[4])
        torch.backends.cuda.enable_flash_sdp(True)


# --- nets that compute_loss uses and that are not in the model ---------------------------------


class _Outside:
    """A loss through a discriminator in training mode, as a generator's step has it."""

    def __init__(self, discriminator: nn.Module) -> None:
        self.discriminator = discriminator

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.softplus(-self.discriminator(model(batch))).mean()


def _generator() -> nn.Module:
    return nn.Sequential(conv_norm(3, WIDTH), nn.Conv2d(WIDTH, 3, 1), nn.Tanh())


@offloads
@pytest.mark.parametrize("spectral", [None, nn.utils.parametrizations.spectral_norm])
def test_a_net_outside_of_the_model(spectral: Any, offload: str | None) -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(live(Discriminator(spectral)).double().train())
    ours, theirs = nets
    model, twin = (live(_generator()).double().train() for _ in range(2))
    twin.load_state_dict(model.state_dict())
    images = Case("images", _generator, IMAGES).big_batch()[0]
    before = everything(model), everything(ours)
    try:
        accumulate(model, _Outside(ours), cut(images, [1, 3, 4]), offload=offload)
    except AccumulationError as raised:
        print(raised)  # noqa: T201
        assert (everything(model), everything(ours)) == before
        return
    _Outside(theirs)(twin, images).backward()
    for one, other in ((model, twin), (ours, theirs)):
        for (name, mine), big in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, big.grad, rtol=1e-9, atol=1e-14, msg=name)
        for (name, mine), big in zip(one.named_buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(mine, big, rtol=1e-12, atol=1e-14, msg=name)


@offloads
def test_a_net_outside_of_the_model_after_a_failure(offload: str | None) -> None:
    discriminator = live(Discriminator()).double().train()
    model = live(_generator()).double().train()
    for parameter in discriminator.parameters():
        parameter.grad = torch.ones_like(parameter)
    discriminator.head.weight.register_hook(_fail)
    images = Case("images", _generator, IMAGES).big_batch()[0]
    before = everything(discriminator)
    with pytest.raises((KeyError, AccumulationError)):
        accumulate(model, _Outside(discriminator), cut(images, [4, 4]), offload=offload)
    assert everything(discriminator) == before


def _fail(gradient: Tensor) -> None:
    raise KeyError("from a hook")
