"""The GPU's benchmark where there is no GPU: its ways, what it compares, and what it says."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu

from bench import _gpu_page as page
from bench import _gpu_ways as ways
from bench import gpu_accumulation
from bench._accumulate_models import UNet
from tests import zoo
from tests.accumulation.exact.truth import distance

WINDOW = {"window": 8, "microbatch": 2, "side": 16, "dtype": "float64"}
EXACT = [
    ways.exact("auto"),
    ways.exact("cpu"),
    ways.exact("disk"),
    ways.saved_on_cpu(pinned=False),
]


def window() -> ways.Window:
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8, 16, 16))
    return ways.Window(zoo.live(UNet(width=4)).double().train(), (images.double(), labels), 2)


def outcome(run: ways.Run, case: ways.Window) -> ways.Outcome:
    model = deepcopy(case.model)
    return ways.left_behind(model, run(ways.Window(model, case.batch, case.microbatch)))


@pytest.mark.parametrize("run", EXACT, ids=["auto", "cpu", "disk", "save_on_cpu"])
def test_the_exact_ways_are_the_big_batch_and_plain_is_not(run: ways.Run) -> None:
    case = window()
    true = outcome(ways.big_batch, case)
    error = distance(outcome(run, case), true)
    assert max(error.kinds) < 1e-11
    plain = distance(outcome(ways.plain, case), true)
    assert plain.gradients > 1e-2
    assert plain.statistics > 1e-2


def test_what_save_on_cpu_needs_is_what_it_copies() -> None:
    case, copied = window(), 0

    class Counting(save_on_cpu):
        def __init__(self) -> None:
            super().__init__()
            self.pack_hook = self._counted(self.pack_hook)

        @staticmethod
        def _counted(pack: Any) -> Any:
            def counted(tensor: Tensor) -> Any:
                nonlocal copied
                copied += tensor.nbytes
                return pack(tensor)

            return counted

    state = {name: value.clone() for name, value in case.model.state_dict().items()}
    needed = ways.bytes_on_cpu(case, pinned=False)
    assert all(torch.equal(value, state[n]) for n, value in case.model.state_dict().items())
    with Counting():
        ways.loss_of(case.model, case.batch)
    # Statistics and weights of norms do not grow with the batch, and are small.
    assert copied <= needed <= 1.02 * copied
    assert needed < ways.bytes_on_cpu(case, pinned=True) < 2 * needed


def samples(peak: float, error: float, noise: float = 1.0) -> list[dict[str, Any]]:
    both = [dict.fromkeys(page.KINDS, size) for size in (error, noise)]
    return [
        {**WINDOW, "way": page.PLAIN, "peak": 1e9, "seconds": 1.0},
        {**WINDOW, "way": page.OURS, "peak": peak, "seconds": 2.0, "error": both[0]},
        {**WINDOW, "way": page.NOISE, "error": both[1]},
    ]


@pytest.mark.parametrize(("peak", "is_met"), [(1.29e9, True), (1.31e9, False)])
def test_memory_is_judged(peak: float, is_met: bool) -> None:
    said = next(page.verdicts(samples(peak, 1.0)))
    assert said.endswith(": met" if is_met else ": missed")


@pytest.mark.parametrize(("error", "verdict"), [(3.9, "met"), (4.1, "missed")])
def test_errors_are_judged(error: float, verdict: str) -> None:
    _, *said = page.verdicts(samples(1e9, error))
    assert [line.rpartition(": ")[2] for line in said] == [verdict] * 3


def test_what_was_not_run_is_not_judged() -> None:
    failed = [{**WINDOW, "way": page.OURS, "failed": "not run: needs 3 GB of the host's 2 GB"}]
    assert [*page.verdicts(failed)] == ["device memory over that of one microbatch: not run"]
    assert page.line(failed[0]).endswith(failed[0]["failed"])


def test_a_page_without_samples_says_so_and_one_with_samples_names_the_machine(
    tmp_path: Path,
) -> None:
    nowhere = tmp_path / "none.json"
    assert page.page(nowhere, nowhere).count("not run") == 4
    there = tmp_path / "samples.json"
    head = {"device": "X", "device_bytes": 2**30, "torch": "2", "cuda": "13", "cudnn": 9}
    head |= {"python": "3.12", "date": "2026-01-01"}
    there.write_text(json.dumps({**head, "samples": samples(1e9, 1.0)}))
    facts = tmp_path / "facts.json"
    fact = {"what": "it holds", "holds": False, "seen": "a | b\nc"}
    facts.write_text(json.dumps({**head, "facts": [fact]}))
    text = page.page(there, facts)
    assert "X, 1 GiB; torch 2" in text
    assert "not run" not in text
    assert "| it holds | DOES NOT HOLD | a \\| b c |" in text


def test_the_page_is_up_to_date() -> None:
    page.show(page.PATH, write=False, check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only without a GPU")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_accumulation.py"])
    gpu_accumulation.main()
    assert "needs a GPU" in capsys.readouterr().out
