"""The page of an audit in Chromium: opens, searches, collapses, filters, and asks for nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from frostline.reports.audit_page import page
from tests.reports import audit_results

SIZES = {
    "10": audit_results.small,
    "1,000": audit_results.thousand,
    "20,000": audit_results.many,
}
READY = "performance.getEntriesByName('frostline-ready')[0].startTime"
# What a user waits for after typing: from the event to the next frame, in milliseconds.
SEARCH = """async (asked) => {
  const start = performance.now();
  const field = document.getElementById("find");
  field.value = asked;
  field.dispatchEvent(new Event("input"));
  const done = () => document.getElementById("matched").textContent !== "";
  while (!done()) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""

AXE = """axe.run({resultTypes: ["violations"]}).then((found) => [
  found.violations.map((rule) => [rule.id, rule.nodes.map((node) => node.html.slice(0, 200))]),
  found.passes.map((rule) => rule.id),
])"""


@pytest.mark.parametrize("size", SIZES)
def test_interactive_in_three_seconds_with_few_rows(tab: Callable[..., Any], size: str) -> None:
    result = SIZES[size]()
    opened = tab(page(result))
    # From the start of the navigation, the quickest of up to three: others use this machine too.
    waited = opened.page.evaluate(READY)
    for _ in range(2):
        waited = waited if waited < 3000 else min(waited, tab(page(result)).page.evaluate(READY))
    assert waited < 3000
    assert opened.page.locator("#tree li").count() <= 120
    assert opened.page.evaluate(SEARCH, "1") < 3000
    assert opened.page.locator("#tree li").count() <= 320
    matches, of = re.findall(r"[\d,]+", opened.words("#matched"))
    expected = sum("1" in row["name"].rpartition(".")[2] for row in result["map"])
    assert int(matches.replace(",", "")) >= expected > 0
    assert int(of.replace(",", "")) == len(result["map"])
    assert opened.is_quiet()


def test_searching_shows_the_way_to_what_is_found_and_back(tab: Callable[..., Any]) -> None:
    opened = tab(page(audit_results.leaky()))
    before = opened.count("#tree li")
    opened.page.get_by_label("Search modules").fill("layer4.1.bn2")
    expect(opened.page.locator("#matched")).to_have_text("1 of 94 modules")
    names = opened.page.locator("#tree .row .own >> visible=true")
    assert names.all_inner_texts() == ["ResNet", "layer4", "1", "bn2"]
    assert opened.count("#tree .row.aside") == 3
    opened.page.get_by_label("Search modules").fill("LAYER4")
    expect(names).to_have_text(["ResNet", "layer4"])  # what is below it has it in its name too
    opened.page.locator("#tree summary", has_text="layer4").click()
    expect(names).to_have_text(["ResNet", "layer4", "0", "1"])
    opened.page.get_by_label("Search modules").fill("no such module")
    expect(opened.page.locator("#matched")).to_have_text("0 of 94 modules")
    assert opened.count("#tree li") == 0
    opened.page.get_by_label("Search modules").fill("")
    expect(opened.page.locator("#matched")).to_have_text("")
    assert opened.count("#tree li") == before
    assert opened.is_quiet()


def test_opening_and_collapsing(tab: Callable[..., Any]) -> None:
    opened = tab(page(audit_results.leaky()))
    opened.page.get_by_role("button", name="Collapse all").click()
    top = opened.count("#tree li")
    opened.page.locator("#tree summary", has_text="layer1").click()
    expect(opened.page.locator("#tree li")).to_have_count(top + 2)
    opened.page.locator("#tree summary", has_text="layer1").click()
    assert opened.count("#tree li") == top
    for _ in range(4):
        opened.page.get_by_role("button", name="Open more").click()
    assert opened.count("#tree li") == 94


@pytest.mark.parametrize(
    ("name", "expected"), [("Will change", 20), ("With findings", 20), ("Trainable", 1)]
)
def test_filters_show_what_they_say(tab: Callable[..., Any], name: str, expected: int) -> None:
    opened = tab(page(audit_results.leaky()))
    chosen = opened.page.locator("#filters button", has_text=name)
    chosen.click()
    assert chosen.get_attribute("aria-pressed") == "true"
    assert opened.words("#matched") == f"{expected} of 94 modules"
    assert opened.count("#tree .row:not(.aside)") == expected
    assert (opened.count("#tree .row:not(.aside) .dot.now") == expected) == (expected == 20)


def test_rows_come_a_hundred_at_a_time_and_a_finding_leads_to_its_own(
    tab: Callable[..., Any],
) -> None:
    result = audit_results.many()
    findings = [{**result["findings"][0], "where": "encoder.4321.1"}]
    opened = tab(page({**result, "findings": findings}))
    opened.page.locator("#tree summary", has_text="encoder").click()
    opened.page.get_by_role("button", name="4,900 more: show 100").click()
    assert opened.page.locator("#tree li:not(.more)").count() == 3 + 200
    opened.page.locator("#findings a").click()
    assert opened.page.locator("#tree .located .own").first.inner_text() == "1"
    expect(opened.page.locator("#tree .located")).to_be_in_viewport()
    focused = "document.activeElement.closest('li').dataset.at"
    assert result["map"][int(opened.page.evaluate(focused))]["name"] == "encoder.4321.1"
    assert opened.page.locator("#tree li").count() < 250
    opened.page.get_by_role("button", name="4,300 before these: show 100").click()
    assert opened.page.locator("#tree li:not(.more)").count() > 200
    assert opened.is_quiet()


def test_keys_walk_the_tree(tab: Callable[..., Any]) -> None:
    opened = tab(page(audit_results.leaky()))
    opened.page.get_by_role("button", name="Collapse all").click()
    opened.page.locator("#tree summary").first.focus()

    def press(key: str) -> str:
        opened.page.keyboard.press(key)
        return opened.page.evaluate("document.activeElement.querySelector('.own').textContent")

    assert [press(key) for key in ("ArrowDown", "ArrowDown", "ArrowRight")] == [
        "bn1",
        "layer1",
        "layer1",
    ]
    expect(opened.page.locator("#tree ul ul ul")).to_have_count(1)
    assert press("ArrowRight") == "0"
    assert press("ArrowLeft") == "layer1"
    assert press("Home") == "ResNet"
    assert press("End") == "global_pool"


def test_findings_are_filtered_by_severity_rule_and_words(tab: Callable[..., Any]) -> None:
    result = audit_results.leaky()
    other = {**result["findings"][0], "code": "FRZ201", "name": "other-rule", "severity": "info"}
    other |= {"where": "fc.weight", "message": "something else", "mend": "", "tensors": []}
    opened = tab(page({**result, "findings": [*result["findings"], other]}))
    assert opened.count(".finding") == 2
    opened.page.get_by_role("button", name="errors").click()
    assert opened.count(".finding.info") == opened.count(".finding") == 1
    opened.page.get_by_role("button", name="errors").click()
    opened.page.get_by_label("Rule").select_option("FRZ101")
    assert opened.count(".finding.error") == opened.count(".finding") == 1
    opened.page.get_by_label("Rule").select_option("")
    for words, left in (
        ("layer2.0.bn1", ".error"),
        ("SOMETHING", ".info"),
        ("other-rule", ".info"),
    ):
        opened.page.get_by_label("Search the findings").fill(words)
        assert opened.count(f".finding{left}") == opened.count(".finding") == 1
        assert opened.words("#shown") == "1 of 2 groups shown"
    opened.page.get_by_label("Search the findings").fill("nowhere")
    assert opened.words("#shown") == "No finding fits."


def test_blocks_zoom_and_change_their_width(tab: Callable[..., Any]) -> None:
    opened = tab(page(audit_results.leaky()))
    head = opened.page.locator(".block[title^='fc ']")
    narrow = head.bounding_box()["width"]
    opened.page.get_by_role("button", name="by parameters").click()
    assert head.count() == 0 or head.bounding_box()["width"] < narrow
    opened.page.locator(".block[title^='layer3 ']").click()
    assert opened.words("#trail b") == "layer3"
    assert opened.words("#tree .located .own") == "layer3"
    opened.page.locator("#trail button").click()
    assert opened.words("#trail b") == "ResNet"


def test_a_mend_is_copied(tab: Callable[..., Any]) -> None:
    opened = tab(page(audit_results.leaky()), permissions=["clipboard-read", "clipboard-write"])
    opened.page.locator("#findings .copy").click()
    expect(opened.page.locator("#findings .copy")).to_have_text("Copied")
    expected = "\n".join(dict.fromkeys(f["mend"] for f in audit_results.leaky()["findings"]))
    assert opened.page.evaluate("navigator.clipboard.readText()") == expected


@pytest.mark.parametrize("width", [1200, 400])
def test_hostile_names_neither_run_nor_break_the_layout(
    tab: Callable[..., Any], width: int
) -> None:
    opened = tab(page(audit_results.hostile()), width=width)
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    text = opened.page.evaluate("document.body.innerText")
    for name in ("</script><script>alert(1)</script>", "{{7*7}}", r"\x1b[31mred", r"\u202egnp"):
        assert name in text
    assert all(c.isprintable() or c in "\n\t" for c in text)
    assert opened.page.locator("script").count() == 2
    assert opened.page.locator("#tree img, #tree svg, #findings img, #findings svg").count() == 0
    assert opened.too_wide <= 0
    assert opened.page.locator("#tree").evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    assert opened.is_quiet()


def test_the_policy_refuses_any_other_script_and_style(tab: Callable[..., Any]) -> None:
    text = page(audit_results.small())
    strange = '<script>document.title = "ran"</script><p id="p" style="color: #010203">x</p>'
    opened = tab(text.replace("</main>", f"{strange}</main>"))
    assert opened.page.title() != "ran"
    colour = "getComputedStyle(document.getElementById('p')).color"
    assert opened.page.evaluate(colour) != "rgb(1, 2, 3)"
    assert len(opened.said) == 2
    assert all("Content Security Policy" in said for said in opened.said)


def test_without_scripts_all_but_the_map_is_there(tab: Callable[..., Any]) -> None:
    opened = tab(page(audit_results.leaky()), java_script_enabled=False)
    assert "layer{1-4}.{0-1}.bn{1-2}" in opened.words("#findings")
    assert "switched off" in opened.words("noscript")
    assert opened.count("#tree, .tools, .copy") == 0
    assert opened.count("table.drift tr") > 10


def test_printing_opens_what_matters(tab: Callable[..., Any]) -> None:
    opened = tab(page(audit_results.leaky()), color_scheme="dark")
    opened.page.get_by_role("button", name="Collapse all").click()
    opened.page.emulate_media(media="print")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(opened.page.locator("#tree .note-at")).to_have_count(20)
    assert (
        opened.page.locator("details.finding:not([open]), .more:not(.rest):not([open])").count()
        == 0
    )
    assert opened.count("input, select, .copy, .switches button") == 0
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    assert opened.page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_contrast_and_labels(tab: Callable[..., Any], scheme: str, width: int) -> None:
    from axe_playwright_python.base import AXE_SCRIPT

    opened = tab(page(_everything()), width=width, color_scheme=scheme)
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    opened.page.evaluate(AXE_SCRIPT)
    told, passed = opened.page.evaluate(AXE)
    assert told == []
    assert {"color-contrast", "label", "button-name", "svg-img-alt", "select-name"} <= set(passed)
    style = "getComputedStyle(document.body)"
    paper, ink = opened.page.evaluate(f"[{style}.backgroundColor, {style}.color]")
    assert (_light(paper) < _light(ink)) == (scheme == "dark")
    assert opened.too_wide <= 0


def _everything() -> dict[str, Any]:
    """A result in which every section and every kind of finding stands."""
    result = audit_results.leaky()
    first = result["findings"][0]
    others = [
        {**first, "code": f"FRZ10{i}", "severity": severity, "tensors": []}
        for i, severity in enumerate(("warning", "info"), 2)
    ]
    later = [name for name in result["after_train"] if not name.startswith("layer1.")]
    return {
        **result,
        "findings": [*result["findings"], *others],
        "will_change": later,
        "undecided": {"fc.weight": "whether a gradient reaches it"},
        "notes": ["a note"],
        "ignored": 2,
        "unused_ignores": ["FRZ999"],
    }


def _light(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765
