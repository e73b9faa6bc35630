"""What one run puts in force does not reach another, and comes back with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from frostline.lockstep.thread_state import ThreadState, unmovable


def seen() -> dict[str, Any]:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return {
        "grad": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "cache": torch.is_autocast_cache_enabled(),
        "modes": torch._C._len_torch_function_stack(),
        "hooks": hooks is not None,
        "anomaly": torch.is_anomaly_enabled(),
        "filters": len(warnings.filters),
        "attention": torch.backends.cuda.math_sdp_enabled(),
    }


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.float16),
    "cache": lambda: torch.autocast("cpu", cache_enabled=False),
    "modes": BaseTorchFunctionMode,
    "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "attention": lambda: sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("name", CONTEXTS)
def test_is_left_behind_and_taken_up(name: str) -> None:
    before, outside = seen(), ThreadState.take()
    with CONTEXTS[name]():
        inside, state = seen(), ThreadState.take()
        assert inside[name] != before[name]
        outside.put()
        assert seen() == before
        state.put()
        assert seen() == inside
    assert seen() == before


def test_hooks_keep_their_order() -> None:
    order: list[str] = []

    def noting(name: str) -> AbstractContextManager[None]:
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            order.append(name)
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)

    outside = ThreadState.take()
    with noting("outer"), noting("inner"):
        inside = ThreadState.take()
        outside.put()
        inside.put()
        torch.ones(2, requires_grad=True).exp()
    assert order == ["inner"]
    assert not seen()["hooks"]


def test_filters_of_warnings() -> None:
    before, outside = list(warnings.filters), ThreadState.take()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = ThreadState.take()
        outside.put()
        assert list(warnings.filters) == before
        inside.put()
    assert list(warnings.filters) == before


def test_draws_go_on_where_they_were() -> None:
    torch.manual_seed(3)
    state = ThreadState.take()
    first = torch.rand(3)
    torch.manual_seed(4)
    state.put()
    assert torch.equal(torch.rand(3), first)


class _Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_what_cannot_be_taken_along_is_named() -> None:
    assert unmovable() is None
    with torch.inference_mode():
        assert "inference_mode" in (unmovable() or "")
    with _Dispatching():
        assert "TorchDispatchMode" in (unmovable() or "")
    found = []
    torch.func.vmap(lambda x: found.append(unmovable()) or x)(torch.ones(2))
    assert "torch.func" in found[0]
    assert unmovable() is None
