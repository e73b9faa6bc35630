"""Hooks of modules fire once a microbatch, those of parameters once a window."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.accumulation.accumulate import accumulate
from frostline.errors import AccumulationError
from tests.accumulation.exact.cases import CASES, Case, cut, even, size_of
from tests.accumulation.exact.truth import assert_is_big_batch, run

offloads = pytest.mark.parametrize("offload", [None, "disk"])


def looked_at(case: Case) -> nn.Module:
    """The case's model after a window, with its state of before: the probes have been."""
    model = case.build()
    accumulate(model, case.loss, cut(case.big_batch(), [1, size_of(case.batch()) - 1]))
    model.load_state_dict(case.build().state_dict())
    model.zero_grad()
    return model


@offloads
def test_hooks_of_modules_fire_once_a_microbatch(offload: str | None) -> None:
    case = CASES["shared norm, no momentum"]
    model, microbatches = looked_at(case), cut(case.big_batch(), [1, 3, 4])
    fired: Counter[str] = Counter()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, i, n=name: fired.update([f"before {n}"]))
        module.register_forward_hook(lambda m, i, o, n=name: fired.update([f"after {n}"]))
    accumulate(model, case.loss, microbatches, offload=offload)
    twice = {"before norm", "after norm"}
    assert fired == {hook: 6 if hook in twice else 3 for hook in fired}
    assert len(fired) == 2 * len(list(model.modules()))


@offloads
def test_backward_hooks_see_the_big_batchs_gradients_in_pieces(offload: str | None) -> None:
    case = CASES["shuffled halves"]

    def record(model: nn.Module) -> dict[str, list[Tensor]]:
        seen: dict[str, list[Tensor]] = {}
        for name in ("stem.1", "blocks.0.0", "blocks.1.1", "head"):
            seen[name] = []

            def hook(m: nn.Module, inwards: Any, outwards: Any, name: str = name) -> None:
                seen[name].append(torch.cat([inwards[0].flatten(), outwards[0].flatten()]))

            model.get_submodule(name).register_full_backward_hook(hook)
        return seen

    ours, theirs = looked_at(case), case.build()
    in_pieces, whole = record(ours), record(theirs)
    accumulate(ours, case.loss, cut(case.big_batch(), [1, 3, 4]), offload=offload)
    case.loss(theirs, case.big_batch()).backward()
    for name, (gradient,) in whole.items():
        assert len(in_pieces[name]) == 3
        pieces = torch.cat(in_pieces[name]).sort().values
        torch.testing.assert_close(pieces, gradient.sort().values, rtol=1e-9, atol=1e-15)


@offloads
def test_hooks_of_parameters_fire_once_a_window(offload: str | None) -> None:
    case = CASES["unet"]
    model, microbatches = case.build(), cut(case.big_batch(), even(16, 4))
    early: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    late: dict[str, list[Tensor]] = {name: [] for name in early}
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda g, n=name: early[n].append(g.clone()))
        parameter.register_post_accumulate_grad_hook(
            lambda p, n=name: late[n].append(p.grad.clone())
        )
    accumulate(model, case.loss, microbatches, offload=offload)
    for name, parameter in model.named_parameters():
        assert [len(early[name]), len(late[name])] == [1, 1], name
        assert torch.equal(early[name][0], parameter.grad)
        assert torch.equal(late[name][0], parameter.grad)


@offloads
def test_a_hook_that_clips_clips_the_windows_gradient(offload: str | None) -> None:
    def clipped(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.register_hook(lambda g: g / (1 + g.norm()))

    case = replace(CASES["unet"], name="clipping", prepare=clipped)
    assert_is_big_batch(case, run(case, partial(accumulate, offload=offload), even(16, 4)))


@offloads
def test_an_optimizer_in_the_backward(offload: str | None) -> None:
    """A post-accumulate hook that steps and drops the gradient, to save its memory."""
    case = CASES["timm mobilenetv3"]

    def stepping(model: nn.Module) -> None:
        def step(parameter: nn.Parameter) -> None:
            with torch.no_grad():
                parameter.sub_(0.1 * parameter.grad)
            parameter.grad = None

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)

    ours, theirs = case.build(), case.build()
    stepping(ours)
    stepping(theirs)
    accumulate(ours, case.loss, cut(case.big_batch(), even(16, 4)), offload=offload)
    case.loss(theirs, case.big_batch()).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is None
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12, msg=name)


# --- activations -------------------------------------------------------------------------------


@offloads
@pytest.mark.parametrize("detached", [True, False])
def test_activations_that_hooks_keep(detached: bool, offload: str | None) -> None:
    """Collected for a log or for another loss; they are there when the window is over."""
    case = CASES["timm resnet"]

    def collect(model: nn.Module) -> dict[str, list[Tensor]]:
        kept: dict[str, list[Tensor]] = {}
        for name in ("conv1", "bn1", "layer2", "layer4.0.bn2", "fc"):
            kept[name] = []
            model.get_submodule(name).register_forward_hook(
                lambda m, i, o, to=kept[name]: to.append(o.detach() if detached else o)
            )
        return kept

    ours, theirs = looked_at(case), case.build()
    in_pieces, whole = collect(ours), collect(theirs)
    accumulate(ours, case.loss, cut(case.big_batch(), [1, 7, 3, 5]), offload=offload)
    case.loss(theirs, case.big_batch())
    for name, (activation,) in whole.items():
        pieces = torch.cat([piece.detach() for piece in in_pieces[name]])
        torch.testing.assert_close(pieces, activation.detach(), rtol=1e-10, atol=1e-12, msg=name)


@offloads
def test_hooks_of_activations_fire_once_a_microbatch(offload: str | None) -> None:
    """Their gradients come from several pieces: the norm, and the skip past it."""
    case = CASES["unet"]

    def record(model: nn.Module) -> list[Tensor]:
        seen: list[Tensor] = []

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.register_hook(lambda gradient: seen.append(gradient.clone()))

        model.down[0].register_forward_hook(hook)
        return seen

    ours, theirs = looked_at(case), case.build()
    in_pieces, whole = record(ours), record(theirs)
    accumulate(ours, case.loss, cut(case.big_batch(), [1, 7, 3, 5]), offload=offload)
    case.loss(theirs, case.big_batch()).backward()
    assert sorted(len(piece) for piece in in_pieces) == [1, 3, 5, 7]
    ordered = [next(p for p in in_pieces if len(p) == size) for size in (1, 7, 3, 5)]
    torch.testing.assert_close(torch.cat(ordered), whole[0], rtol=1e-9, atol=1e-15)


@offloads
def test_retained_gradients_of_activations(offload: str | None) -> None:
    case = CASES["unet"]

    def keep(model: nn.Module) -> list[Tensor]:
        kept: list[Tensor] = []

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.retain_grad()
            kept.append(output)

        model.down[0].register_forward_hook(hook)
        return kept

    ours, theirs = looked_at(case), case.build()
    in_pieces, whole = keep(ours), keep(theirs)
    microbatches = cut(case.big_batch(), [1, 7, 3, 5])
    if offload == "disk":  # what is retained refers to the tensor, which is cut there
        with pytest.raises(AccumulationError, match="offload=None"):
            accumulate(ours, case.loss, microbatches, offload=offload)
        return
    accumulate(ours, case.loss, microbatches, offload=offload)
    case.loss(theirs, case.big_batch()).backward()
    gradients = torch.cat([activation.grad for activation in in_pieces])
    torch.testing.assert_close(gradients, whole[0].grad, rtol=1e-9, atol=1e-15)
