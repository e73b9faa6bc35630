"""The page of an audit: what it says, what it escapes, and that it can load nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from typing import Any

import pytest

from frostline.reports import audit_map
from frostline.reports.audit_findings import grouped
from frostline.reports.audit_page import page
from tests.reports import audit_results

SMALL = audit_results.small


def words(text: str) -> str:
    body = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def said(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}\b[^>]*>(.*?)</{tag}>", text, flags=re.DOTALL)
    assert found is not None
    return words(found[1])


def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found is not None
    return json.loads(found[1])


def finding(where: str = "0", **other: Any) -> dict[str, Any]:
    return {
        "code": "FRZ101",
        "name": "batchnorm-stats-update",
        "severity": "error",
        "where": where,
        "message": f"{where} writes",
        "mend": f"fl.freeze(model, {where!r})",
        "tensors": [f"{where}.running_mean"],
        **other,
    }


CLAIM = {"text": "requires_grad=False", "tensors": 3, "elements": 3, "bytes": 12}
ERROR, WARNING = finding(), finding(severity="warning")


@pytest.mark.parametrize(
    ("changed", "title", "tone"),
    [
        ({"will_change": ["a"], "after_train": ["a"]}, "1 frozen tensor will change", "bad"),
        ({"will_change": ["a", "b"]}, "2 frozen tensors will change", "bad"),
        (
            {"after_train": ["a"]},
            "Nothing frozen changes now, but 1 tensor will after model.train()",
            "unsure",
        ),
        ({"undecided": {"a": "why"}}, "1 frozen tensor may change", "unsure"),
        (
            {"ok": False, "findings": [ERROR]},
            "Nothing frozen will change, but training will go",
            "bad",
        ),
        ({"ok": False, "findings": [WARNING]}, "Nothing frozen will change", "unsure"),
        ({}, "Nothing frozen will change", "good"),
        ({"claim": {**CLAIM, "tensors": 0}, "will_change": ["a"]}, "Nothing is frozen", "unsure"),
    ],
)
def test_the_verdict_stands_on_top_in_words(changed: dict[str, Any], title: str, tone: str) -> None:
    text = page({**SMALL(), "claim": CLAIM, **changed})
    assert said(text, "h1").startswith(title)
    assert f'<h1 class="{tone}">' in text


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("read", "Nothing was run: this was read off the modules ."),
        ("predicted", "without memory; no data were needed. Run as: the loss of it."),
        ("measured", "A real training step ran, every byte was compared"),
    ],
)
def test_how_it_was_found_out_is_said(how: str, told: str) -> None:
    text = words(page({**SMALL(), "how": how, "called": "the loss of it"}))
    assert told.replace(" .", ".") in text.replace(" .", ".")


def test_a_real_audit_is_told_whole() -> None:
    result = audit_results.leaky()
    text = words(page(result))
    for part in (
        "60 frozen tensors will change",
        "20 errors",
        "FRZ101 batchnorm-stats-update 20 places",
        "layer{1-4}.{0-1}.bn{1-2} 16",
        " ".join(result["findings"][0]["mend"].split()),
        "20 counters of batches moved too and are left out",
        "State of SGD",
        "20 × BatchNorm2d",
    ):
        assert part in text
    assert len(re.findall("<h1", page(result))) == 1


def test_the_policy_names_the_scripts_and_styles_that_are_there() -> None:
    text = page(audit_results.leaky())
    policy = html.unescape(re.search(r'Policy" content="([^"]*)"', text)[1])  # type: ignore[index]
    inline = re.findall(r"<(style|script)>(.*?)</\1>", text, flags=re.DOTALL)
    assert [tag for tag, _ in inline] == ["style", "style", "script"]
    for tag, body in inline:
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in re.search(rf"{tag}-src ([^;]*)", policy)[1]  # type: ignore[index]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not re.search(
        r"<(link|iframe|img|object)\b|https?:|url\(|@import|\sstyle=|\son\w+=", text
    )


def test_names_of_others_are_text_everywhere() -> None:
    text = page(audit_results.hostile())
    assert text.count("<script") == text.count("</script>") == 2
    outside = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    assert "<img" not in outside
    assert "onload=alert(1)&gt;" in outside
    assert all(c.isprintable() or c == "\n" for c in text)
    text.encode()
    assert len(text) < 200_000
    assert "</script><script>alert(1)</script>" in data(text)["name"]


def test_findings_of_a_rule_stand_together_and_siblings_once() -> None:
    findings = [finding(f"layer.{i}.bn") for i in range(3)]
    findings += [
        finding("head.bn"),
        finding("layer.0", severity="info"),
        finding("x", code="FRZ999"),
    ]
    result = {**SMALL(), "findings": findings}
    groups, group_of = grouped(result)
    assert [(g.code, g.severity, g.count) for g in groups] == [
        ("FRZ101", "error", 4),
        ("FRZ101", "info", 1),
        ("FRZ999", "error", 1),
    ]
    assert group_of == [0, 0, 0, 0, 1, 2]
    (entry,) = groups[0].entries
    assert [place[:2] for place in entry.places] == [("layer.{0-2}.bn", 3), ("head.bn", 1)]
    assert len(groups[0].mends) == 4
    assert groups[0].tensors.patterns[0] == ("layer.{0-2}.bn.running_mean", 3)


def test_messages_that_differ_in_more_than_numbers_are_told_each() -> None:
    messages = ["moves by 0.1", "moves by 0.2", "stays"]
    findings = [finding(str(i), message=message) for i, message in enumerate(messages)]
    (group,), _ = grouped({**SMALL(), "findings": findings})
    assert [(e.message, e.count) for e in group.entries] == [("moves by 0.1", 2), ("stays", 1)]


def test_what_is_left_out_is_counted() -> None:
    letters = [chr(ord("a") + i) + chr(ord("a") + j) for i in range(10) for j in range(10)]
    findings = [finding(name, message=f"only {name.upper()}") for name in letters]
    findings += [finding(name + "z", message="all") for name in letters]
    result = {**SMALL(), "findings": [*findings[100:], *findings[:100]]}
    (group,), _ = grouped(result)
    assert group.count == 200
    assert sum(entry.count for entry in group.entries) + group.left == 200
    assert len(group.entries[0].places) + group.entries[0].left == 100
    assert len(group.mends) + group.mends_left == 200
    text = words(page(result))
    for left in (group.left, group.entries[0].left, group.mends_left):
        assert left > 0
        assert f"and {left} more" in text


def test_findings_and_tensors_are_at_their_modules_on_the_map() -> None:
    result = audit_results.leaky()
    drawn = audit_map.data(result, [0] * len(result["findings"]))
    at = {name: i for i, name in enumerate(drawn["name"])}
    assert {drawn["name"][f[0]] for f in drawn["findings"]} == {
        f["where"] for f in result["findings"]
    }
    assert drawn["now"][at["layer1.0.bn1"]] == [
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]
    assert sum(map(len, drawn["now"].values())) == len(result["will_change"])
    own = [drawn["name"][i][cut:] for i, cut in enumerate(drawn["own"])]
    assert own == [row["name"].rpartition(".")[2] for row in result["map"]]


def test_a_place_that_is_no_module_is_at_the_innermost_around_it() -> None:
    places = audit_map.Places([{"name": name} for name in ("", "a", "a.b", "ab")])
    wanted = {"a.b.weight": 2, "a.c": 1, "abc.d": 0, "ab.x.y": 3, "": 0}
    assert {name: places.at(name) for name in wanted} == wanted


def test_a_wrapper_that_adds_no_name_is_drawn_by_its_type() -> None:
    rows = [
        {**SMALL()["map"][0], "name": name, "parent": parent}
        for name, parent in (("", -1), ("", 0), ("a", 1), ("a", 2), ("b", 2))
    ]
    drawn = audit_map.data({**SMALL(), "map": rows}, [])
    assert [drawn["name"][i][cut:] for i, cut in enumerate(drawn["own"])] == ["", "", "a", "", "b"]


def test_memory_that_nobody_knows_is_not_counted_as_none() -> None:
    counts = {**SMALL()["counts"], "optimizer": "Odd", "optimizer_bytes": None}
    text = words(page({**SMALL(), "counts": counts}))
    assert "State of Odd not known" in text
    assert "Together at least" in text


def test_notes_and_ignores_are_told() -> None:
    result = {**SMALL(), "notes": ["a <note>"], "ignored": 2, "unused_ignores": ["FRZ9"]}
    text = words(page(result))
    for part in ("a <note>", "2 findings were ignored, as asked", "The ignore FRZ9 hid nothing"):
        assert part in text


def test_many_modules_by_hand_are_what_an_audit_of_them_gives() -> None:
    real, by_hand = audit_results.thousand(), audit_results.many()
    assert real.keys() == by_hand.keys()
    for i in (0, 1, 2, 3, 4, 5, 6, -1):
        expected, got = real["map"][i], by_hand["map"][i]
        sizes = ("parameters", "bytes") if i in (0, 1) else ()
        assert {k: v for k, v in expected.items() if k not in sizes} == {
            k: v for k, v in got.items() if k not in sizes
        }
    assert by_hand["will_change"][:4] == real["will_change"][:4]
    assert len(by_hand["map"]) == by_hand["modules"] == 20_003
