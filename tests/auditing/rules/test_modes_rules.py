"""What rules of buffers and modes say beyond their codes: how bad it is, where, and the mend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import frostline as fl
from frostline._names import places
from frostline.auditing.claim import Claim, claim
from frostline.auditing.finding import Finding
from frostline.auditing.gathering import gather
from frostline.auditing.reading import read
from frostline.auditing.rules import frz110_patched_train as patched_train
from frostline.auditing.rules.frz112_recurrent_backward_in_eval import check
from frostline.auditing.step import Step
from frostline.auditing.subject import Facts, Subject
from tests.auditing.cases import Case
from tests.auditing.rules import (
    frz103,
    frz105,
    frz106,
    frz107,
    frz108,
    frz109,
    frz110,
    frz111,
    frz112,
    frz113,
)


def told(case: Case, code: str) -> list[Finding]:
    report = fl.audit(
        case.model, frozen=case.frozen, optimizer=case.optimizer, batch=case.batch,
        compute_loss=case.compute_loss,
    )  # fmt: skip
    return [finding for finding in report.findings if finding.code == code]


@pytest.mark.parametrize(
    ("make", "severity"),
    [
        (frz105.bad_tracking_switched_off, "warning"),
        (frz105.bad_no_statistics_at_all, "info"),
        (frz106.bad_embedding, "error"),
        (frz108.bad_codebook, "error"),
        (frz108.bad_codebook_by_reading, "warning"),
        (frz108.bad_held_in_vain, "error"),
        (frz111.bad_hook_moves_it, "error"),
        (frz111.bad_hook_by_reading, "warning"),
        (frz111.bad_hook_that_moves_something_else, "info"),
        (frz111.bad_deepseek, "info"),
        (frz112.bad_lstm_in_the_middle, "info"),
    ],
)
def test_how_bad_it_is(make: Callable[[], Case], severity: str) -> None:
    code = make.__module__.rpartition(".")[2].upper()
    assert {finding.severity for finding in told(make(), code)} == {severity}


@pytest.mark.parametrize(
    ("make", "frozen"),
    [
        (frz103.bad_dropout_by_flag, True),
        (frz103.bad_a_function_that_drops_in_every_mode, False),
        (frz108.bad_codebook, True),
        (frz108.bad_queue_in_eval, False),
        (frz108.bad_it_writes_in_eval_only, False),
        (frz113.bad_encoder_in_eval, True),
    ],
)
def test_freezing_is_advised_only_where_it_helps(make: Callable[[], Case], frozen: bool) -> None:
    code = make.__module__.rpartition(".")[2].upper()
    (finding,) = told(make(), code)
    assert finding.mend.startswith("fl.freeze(" if frozen else "# ")


def test_dropout_is_told_once_for_each_part_that_runs() -> None:
    """A list of modules runs none of them itself."""
    blocks = [nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Dropout(0.2)) for _ in range(3)]
    model = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "head": nn.Linear(2, 1)})
    model["blocks"].requires_grad_(False)
    found = told(Case(model), "FRZ103")
    assert [finding.where for finding in found] == ["blocks.0", "blocks.1", "blocks.2"]
    assert {finding.message for finding in found} == {
        "draws random numbers in training mode: 2 Dropout"
    }
    assert {finding.mend for finding in found} == {"fl.freeze(model, fl.FLAGGED)"}


def test_a_quantiser_and_its_observer_are_one_finding() -> None:
    (finding,) = told(frz107.bad_fake_quantisation(), "FRZ107")
    assert finding.where == "0.1"
    assert finding.tensors == (
        "0.1.scale",
        "0.1.zero_point",
        "0.1.activation_post_process.min_val",
        "0.1.activation_post_process.max_val",
    )


def test_what_a_function_wrote_is_named_beside_what_the_code_shows() -> None:
    (finding,) = told(frz108.bad_codebook(), "FRZ108")
    assert set(finding.tensors) == {"0.1.embed", "0.1.cluster_size"}
    (finding,) = told(frz108.bad_codebook_by_reading(), "FRZ108")
    assert finding.tensors == ("0.1.embed",)


def test_the_outermost_module_that_is_stuck_is_told() -> None:
    (finding,) = told(frz109.bad_dropout_of_a_skipped_encoder(), "FRZ109")
    assert finding.where == "encoder"
    assert "1 module that it matters to: Dropout" in finding.message


def test_a_mend_takes_the_patch_off_one_object_only() -> None:
    case = frz110.bad_deep_in_the_part()
    case.model["trunk2"].train = frz110.disabled_train
    (finding,) = told(case, "FRZ110")
    exec(finding.mend, {"model": case.model, "fl": fl})
    assert "train" not in vars(case.model["trunk"][1])
    assert "train" in vars(case.model["trunk2"])


def test_what_torch_puts_on_an_exported_program_is_no_patch() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False).eval()
    exported = torch.export.export(model, (torch.randn(3, 2),)).module()
    assert "train" in vars(exported)
    patched = nn.Linear(2, 2)
    patched.train = lambda mode=True: patched
    modules = [
        Facts(name, module, None, True, False, False, False, None)
        for name, module in (("exported", exported), ("patched", patched))
    ]
    subject = Subject(model, Claim(""), modules, [], Step("read"), Step("read"))
    assert [seen.where for seen in patched_train.check(subject)] == ["patched"]


def test_an_error_of_cudnn_counts_whatever_the_order() -> None:
    """Where nothing trainable was registered before it, only the run can know."""
    model = nn.ModuleDict({"rnn": nn.LSTM(2, 2), "head": nn.Linear(2, 2)})
    model["rnn"].requires_grad_(False).eval()
    subject = _subject(model)
    assert list(check(subject)) == []
    raised = "cudnn RNN backward can only be called in training mode"
    subject.now = replace(subject.now, raised=raised)
    assert [seen.where for seen in check(subject)] == ["rnn"]


def _subject(model: nn.Module) -> Subject:
    everything = places(model)
    claimed = claim(model, None)
    modules = gather(model, everything, claimed)
    step = read(modules, training=False)
    return Subject(model, claimed, modules, everything.tensors, step, step)


def test_checkpointing_goes_on_after_the_mend() -> None:
    """The layers of transformers run a second time in backward."""
    case = frz113.bad_encoder_in_eval()
    (finding,) = told(case, "FRZ113")
    assert finding.where == "bert.encoder.layer.0"
    runs: list[int] = []
    layer = case.model.bert.encoder.layer[1].output.dense
    layer.register_forward_hook(lambda *_: runs.append(1))

    exec(finding.mend, {"model": case.model, "fl": fl})
    case.model.train()
    case.model(input_ids=torch.randint(0, 8, (2, 4))).logits.sum().backward()
    assert len(runs) == 2
