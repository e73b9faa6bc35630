"""The baselines of bench/accumulate.py are right and strong, and its summary can say "missed"."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import _accumulate_summary as summary
from bench import _recalibrate_summary as recalibrating
from bench._accumulate_models import SUBJECTS, UNet, loss_of
from bench._accumulate_ways import BASELINES, DiskTape, Window
from bench._claims import Claim
from bench._fresh import Kept
from tests import zoo

Sample = dict[str, Any]


def window() -> Window:
    """Twelve small images for a U-Net of the same shape as the bench's, a tenth as wide."""
    torch.manual_seed(0)
    images, labels = torch.randn(12, 3, 16, 16), torch.randint(10, (12, 16, 16))
    return Window(zoo.live(UNet(width=4)).double().train(), (images.double(), labels))


def gradients(way: str, case: Window) -> tuple[Tensor, Tensor]:
    model = deepcopy(case.model)
    loss = BASELINES[way](Window(model, case.batch))
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss


# --- baselines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["big + checkpoint", "big + hooks"])
def test_the_baselines_are_the_big_batch_in_bits(way: str) -> None:
    case = window()
    truth, loss = gradients("big batch", case)
    found, other = gradients(way, case)
    assert torch.equal(found, truth)
    assert torch.equal(other, loss)


def test_plain_is_not_the_big_batch() -> None:
    case = window()
    truth, found = gradients("big batch", case)[0], gradients("plain", case)[0]
    assert (found - truth).norm() > 0.05 * truth.norm()


def test_the_tape_takes_each_storage_once_and_no_parameter() -> None:
    case = window()
    saved: dict[int, Tensor] = {}
    stays = {t.untyped_storage().data_ptr() for t in (*case.model.parameters(), *case.batch)}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # alive, so no address comes again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(case.model, case.batch)
    others = [t.untyped_storage().nbytes() for at, t in saved.items() if at not in stays]
    big = sum(nbytes for nbytes in others if nbytes >= 4096)
    tape = DiskTape(case)
    with tape:
        loss_of(case.model, case.batch)
    assert tape._end == big


def test_the_tape_keeps_what_was_saved_when_it_is_overwritten() -> None:
    x = torch.randn(4096, requires_grad=True)
    case = Window(nn.Module(), (torch.zeros(1), torch.zeros(1)))
    with DiskTape(case):
        y = x * 2
        before = y.square()  # saves y
        with torch.no_grad():
            y.mul_(3)
        after = y.square()  # saves it again
    with torch.no_grad():
        y.zero_()
    (before + after).sum().backward()
    torch.testing.assert_close(x.grad, 2 * 4 * x.detach() + 2 * 12 * x.detach())


def test_the_models_are_of_the_sizes_that_are_asked_for() -> None:
    assert 2e6 < sum(p.numel() for p in UNet().parameters()) < 4e6
    assert [subject.side for subject in SUBJECTS.values()] == [64, 128, 64]
    assert set(SUBJECTS) == set(summary.MODELS)


# --- summaries ---------------------------------------------------------------------------------


def sample(way: str, window: int, seconds: float, peak: float, number: int = 0) -> list[Sample]:
    base = {"model": "unet-64", "window": window, "way": way, "round": number, "gradients": 1e6}
    figures = {"seconds": seconds, "peak": peak * 1e6 + 1e6}
    return [{**base, **figures, "kind": kind} for kind in ("time", "memory")]


def told(*samples: list[Sample]) -> dict[str, Claim]:
    claims = summary.claims(one for both in samples for one in both)
    return {c.what.removeprefix("accumulate, unet-64: "): c for c in claims if "unet" in c.what}


def test_claims_are_ratios_without_the_gradients() -> None:
    claims = told(
        sample("windowed", 128, 3.0, 20),
        sample("windowed", 16, 1.0, 10),
        sample("big + hooks", 128, 1.0, 100),
        sample("plain", 16, 1.0, 10),
        sample("tape kept", 16, 1.0, 10),
        sample("plain", 128, 1.0, 10),
        sample("tape kept", 128, 1.5, 10),
    )
    ratios = {what: claim.ratios for what, claim in claims.items()}
    assert ratios["windowed, peak at 128 over 16"] == [2.0]
    assert ratios["windowed over big + hooks at 128, peak"] == [0.2]
    assert ratios["windowed over big + hooks at 128, time"] == [3.0]
    assert ratios["tape kept over plain, time, worst window"] == [1.5]
    verdicts = [claim.verdict for claim in claims.values()]
    assert verdicts == ["missed", "met", "missed", "missed", "not run"]


def test_auto_is_compared_with_the_fastest_that_fits() -> None:
    claims = told(
        sample("auto, 50 MB", 16, 3.0, 40),
        sample("big batch", 16, 1.0, 100),  # faster, does not fit
        sample("big + hooks", 16, 2.0, 40),
        sample("windowed", 16, 2.5, 10),
    )
    assert claims["auto over the fastest that fits, time, worst case"].ratios == [1.5]


def test_auto_is_compared_with_the_smallest_where_nothing_fits() -> None:
    claims = told(
        sample("auto, 5 MB", 16, 3.0, 10),
        sample("big batch", 16, 1.0, 100),
        sample("windowed", 16, 2.5, 10),
    )
    assert claims["auto over the fastest that fits, time, worst case"].ratios == [1.2]


def test_nothing_is_claimed_of_what_was_not_run_or_failed() -> None:
    failed = [{**one, "error": "no"} for one in sample("windowed", 128, 1.0, 1)]
    for claims in (told(), told(failed, sample("big + hooks", 128, 1.0, 1))):
        assert {claim.verdict for claim in claims.values()} == {"not run"}
    assert {claim.verdict for claim in recalibrating.claims([])} == {"not run"}


def test_recalibration_is_compared_with_the_evaluation_pass() -> None:
    base = {"model": "resnet18-32", "samples": 1024, "round": 0, "kind": "time"}
    both = [{**base, "way": way, "seconds": s} for way, s in (("evaluation", 2), ("layerwise", 6))]
    claims = {claim.what: claim for claim in recalibrating.claims(both)}
    first = "recalibrate, resnet18-32, 1,024 samples: layerwise over an evaluation pass, time"
    assert claims[first].ratios == [3.0]
    assert claims[first].verdict == "missed"


def test_samples_are_kept_as_they_come(tmp_path: Any) -> None:
    kept = Kept(tmp_path / "samples.json", ("way", "round"), {"torch": "1"})
    assert kept.read() == []
    for seconds, number in ((1.0, 0), (2.0, 1), (3.0, 0)):
        kept.add({"way": "plain", "round": number, "seconds": seconds})
    assert [(s["round"], s["seconds"]) for s in kept.read()] == [(1, 2.0), (0, 3.0)]
    assert kept.has({"way": "plain", "round": 1})
    assert not kept.has({"way": "plain", "round": 2})
