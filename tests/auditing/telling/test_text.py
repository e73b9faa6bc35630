"""How a report reads on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline._results import WIDTH
from frostline.auditing import audit
from frostline.auditing.finding import Finding, worst_first
from frostline.auditing.report import AuditReport
from frostline.auditing.telling.grouping import grouped, mends, message
from frostline.auditing.telling.printable import code, printable
from frostline.auditing.telling.text import text
from tests.zoo import ZOO, fresh


def seen(
    where: str, said: str = "a fact", *, code: str = "FRZ101", severity: str = "error"
) -> Finding:
    name = "batchnorm-stats-update"
    return Finding(code, name, severity, where, said, f"mend({where!r})")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def resnet() -> AuditReport:
    model = fresh(ZOO["resnet18"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("fc")
    return audit(model.train())


def with_findings(report: AuditReport, findings: Iterable[Finding]) -> AuditReport:
    return replace(report, findings=tuple(worst_first(list(findings))))


def blocks(told: str) -> list[str]:
    return told.split("\n\n")[1:-1]


# --- a real model --------------------------------------------------------------------------------


def test_the_norms_of_a_resnet_are_a_few_lines(resnet: AuditReport) -> None:
    told = text(resnet)
    assert len(resnet.findings) == 20
    assert told.startswith("Audit  ResNet: 20 errors\n\n")
    (block,) = blocks(told)
    head, *rest = block.splitlines()
    assert head == "bn1, layer{1-4}.{0-1}.bn{1-2}, layer{2-4}.0.downsample.1  (20 places)"
    assert rest[0] == "  error      FRZ101 batchnorm-stats-update"
    assert rest[3:] == ["  mend       fl.freeze(model, fl.FLAGGED)"]
    assert len(told.splitlines()) < 20


def test_the_end_says_what_was_asked_and_how_it_is_known(resnet: AuditReport) -> None:
    end = text(resnet).split("\n\n")[-1]
    assert end.startswith("60 of 120 frozen tensors will change in a training step.\n")
    assert "  claimed    requires_grad=False: 120 tensors, " in end
    assert "  known by   reading modules and optimizer; nothing was run" in end
    assert end.endswith("To know more: frostline rule FRZ101")


def test_the_mends_mend() -> None:
    model = fresh(ZOO["resnet18"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("fc")
    lines = text(audit(model.train())).partition("  mend ")[2].partition("\n\n")[0]
    exec("\n".join(line.strip() for line in lines.splitlines()), {"fl": fl, "model": model})
    told = text(audit(model))
    assert told.startswith("Audit  ResNet: nothing found\n\n")
    assert "None of 120 frozen tensors changes in a training step." in told
    assert "To know more" not in told


def test_nothing_claimed() -> None:
    told = text(audit(nn.Linear(2, 1)))
    assert "Nothing is claimed to be frozen" in told


def test_a_step_after_train_is_told_apart() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    for norm in (net[0], net[1]):
        norm.requires_grad_(False).running_var.fill_(2.0)
    net[1].eval()
    told = " ".join(text(audit(net)).split())
    assert "3 of 10 frozen tensors will change in a training step as the modes are, 6 after" in told


def test_what_was_ignored_is_said(resnet: AuditReport) -> None:
    told = text(resnet.filter(ignore=["FRZ101", "FRZ102"]))
    assert "  ignored    20 findings\n  ignored    nothing by FRZ102: leave it out" in told


def test_what_is_undecided_and_how_far_it_moved(resnet: AuditReport) -> None:
    odd = replace(
        resnet,
        how="measured",
        called="model(batch[0])",
        undecided={"a.0": "rounding", "a.1": "rounding", "b": "its own code in Odd"},
        drift={
            "bn1.running_mean": 0.25,
            "bn1.running_var": float("inf"),
            "bn1.num_batches_tracked": 1.0,
        },
        notes=("the step ended early: ValueError",),
    )
    told = " ".join(text(odd).split())
    assert "by up to 0.25 (bn1.running_mean)" in told
    assert "undecided a.{0-1}: rounding undecided b: its own code in Odd" in told
    assert "known by a real step with model(batch[0]); everything was put back" in told
    assert "note the step ended early: ValueError" in told


# --- grouping ------------------------------------------------------------------------------------


def test_a_place_with_more_findings_is_a_group_of_its_own() -> None:
    found = [seen("a.0"), seen("a.1"), seen("a.2"), seen("a.1", code="FRZ102", severity="warning")]
    told = [(group.places, len(group.findings)) for group in grouped(found)]
    assert told == [(("a.0", "a.2"), 1), (("a.1",), 2)]


def test_what_is_only_to_be_known_does_not_tear_errors_asunder() -> None:
    found = [seen("a.0", code="FRZ103", severity="info"), seen("a.0"), seen("a.1")]
    told = [(group.places, group.findings[0][0].severity) for group in grouped(found)]
    assert told == [(("a.0", "a.1"), "error"), (("a.0",), "info")]


def test_the_order_of_the_findings_makes_no_difference() -> None:
    found = [seen("a", code="FRZ102", severity="warning"), seen("a")]
    (group,) = grouped(found)
    assert [alike[0].code for alike in group.findings] == ["FRZ101", "FRZ102"]
    assert grouped(found[::-1]) == [group]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (seen("a.0", "a.0 has 3"), seen("a.1", "a.1 has 4"), True),
        (seen("a", "x in a"), seen("b", "x in b"), True),
        (seen("1", "BatchNorm1d writes"), seen("2", "BatchNorm1d writes"), True),
        (seen("a", "BatchNorm1d writes"), seen("b", "InstanceNorm1d writes"), False),
        (seen("a"), seen("b", severity="warning"), False),
        (seen("a"), seen("b", code="FRZ102"), False),
    ],
)
def test_what_is_the_same(one: Finding, other: Finding, same: bool) -> None:
    assert len(grouped([one, other])) == (1 if same else 2)


def test_values_that_differ_are_said_to_be_of_one() -> None:
    (group,) = grouped([seen("a.0", "max_norm=1.0"), seen("a.1", "max_norm=2.0")])
    assert message(group.findings[0]) == "max_norm=1.0 (said of a.0)"
    assert mends(group.findings[0]) == ("mend('a.0')", "mend('a.1')")


def test_the_worst_comes_first(resnet: AuditReport) -> None:
    found = [seen("z", severity="info"), seen("y", severity="warning"), seen("x"), seen("y")]
    told = text(with_findings(resnet, found))
    assert [block.split()[0] for block in blocks(told)] == ["x", "y", "z"]
    assert told.startswith("Audit  ResNet: 2 errors, 1 warning, 1 info")
    assert blocks(told)[1].index("error") < blocks(told)[1].index("warning")


def test_many_mends_are_cut(resnet: AuditReport) -> None:
    (block,) = blocks(text(with_findings(resnet, [seen(f"a.{i}") for i in range(40)])))
    assert block.splitlines()[0] == "a.{0-39}  (40 places)"
    assert block.endswith("             # and 34 more like these: see .findings")


def test_code_of_several_lines_is_shown_once(resnet: AuditReport) -> None:
    long, short = "for group in optimizer.param_groups:\n    ...", "fl.freeze(model)"
    found = [
        replace(seen("a", "one thing"), mend=long),
        replace(seen("a", "another", code="FRZ102"), mend=long),
        replace(seen("b", "third"), mend=long),
        replace(seen("c", "fourth"), mend=short),
        replace(seen("d", "fifth"), mend=short),
    ]
    told = text(with_findings(resnet, found))
    assert told.count("for group in") == 1
    assert blocks(told)[0].endswith("another\n  mend       " + long.replace("\n", "\n" + " " * 13))
    assert blocks(told)[1].endswith("third\n  mend       # as for a")
    assert told.count("fl.freeze(model)") == 2


severities = st.sampled_from(["error", "warning", "info"])
places = st.sampled_from(["", "a", "b.0.x", "b.1.x", "b.2.x", "c.1", "c.10"])
findings = st.builds(
    lambda where, severity, kind: seen(where, f"fact {kind}", severity=severity),
    places, severities, st.sampled_from(["one", "two"]),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(findings, max_size=12))
def test_every_finding_is_in_one_group(found: list[Finding]) -> None:
    groups = grouped(found)
    told = [one for group in groups for alike in group.findings for one in alike]
    assert sorted(map(repr, told)) == sorted(map(repr, found))
    for group in groups:
        for alike in group.findings:
            assert [one.where for one in alike] == list(group.places)


# --- 80 columns, and names of others -------------------------------------------------------------

ESC = "\x1b[31m\x1b]0;title\x07"
BIDI = "\u202etxt\u2066\u200b"
HOSTILE = [
    ESC,
    BIDI,
    "two\nlines\r\x0b\x0c\u2028\x85",
    "::error::x",
    "##[add-mask]y",
    "<script>alert(1)</script>",
    "'; import os #",
    "[bold]markup[/bold]",
    "%s{0}\\",
    "é中\U0001f600",
    "x" * 10_000,
    (ESC + BIDI) * 500,
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:12])
def test_a_hostile_name_neither_runs_nor_breaks_it(resnet: AuditReport, name: str) -> None:
    net = nn.Module()
    net.add_module(name, nn.BatchNorm1d(2))
    net.get_submodule(name).requires_grad_(False).running_var.fill_(2.0)
    report = replace(audit(net), notes=(name,), undecided={name: name}, unused_ignores=(name,))
    told = text(report)
    assert all(c == "\n" or c.isprintable() for c in told)
    assert not any(line.lstrip().startswith(("::", "##[")) for line in told.splitlines())
    assert len(told) < 10_000
    broken = [line for line in told.splitlines() if len(line) > WIDTH and "fl.freeze(" not in line]
    assert broken == []


def test_long_facts_and_long_code_are_cut(resnet: AuditReport) -> None:
    long = "x" * 10_000
    found = [replace(seen("a", f"fact {long} end"), mend=f"fl.freeze(model, '{long}')")]
    told = text(with_findings(resnet, found))
    assert len(told) < 2000
    assert " end\n" in told.replace(" " * 13, "")
    assert "')\n" in told


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_printable_is_one_line_that_steers_nothing(words: str) -> None:
    shown = printable(words)
    assert shown.isprintable()
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} for c in shown)
    assert "::" not in shown
    if words.isprintable() and "::" not in words and "##[" not in words:
        assert shown == words


def test_marks_of_a_workflow_are_broken_up() -> None:
    assert printable(":::") == r"\x3a\x3a:"
    assert printable("###[x] a:b # [y]") == r"#\x23#[x] a:b # [y]"


def test_code_keeps_its_slices() -> None:
    assert code("x[::2]") == "x[::2]"
    assert code("a\x1bb\tc") == r"a\x1bb\tc"


@pytest.mark.parametrize("name", ["lstm", "levit", "two_branches"])
def test_real_models_within_80_columns(name: str) -> None:
    entry = ZOO[name]
    model = fresh(entry)
    told = text(
        audit(model, frozen=entry.backbone, optimizer=torch.optim.AdamW(model.parameters()))
    )
    wide = [line for line in told.splitlines() if len(line) > WIDTH]
    assert all("(model" in line or "#" in line for line in wide), told
