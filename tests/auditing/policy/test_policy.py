"""Which findings are shown, and what a project's file says about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.auditing.finding import Finding
from frostline.auditing.policy.codes import chosen, looks_like_code, rule_of
from frostline.auditing.policy.policy import Policy, apply
from frostline.auditing.policy.pyproject import configured
from frostline.auditing.rules import BY_CODE
from frostline.errors import FrostlineError, SelectionError


def seen(code: str, where: str = "backbone.bn1") -> Finding:
    return Finding(code, BY_CODE[code].name, "error", where, "a fact", "fl.freeze(model)")


FOUND = [
    seen("FRZ101"),
    seen("FRZ101", "backbone.bn2"),
    seen("FRZ101", "backbone.bn2.inner"),
    seen("FRZ102", "backbone.bn1"),
    seen("FRZ100", "head"),
    seen("FRZ101", ""),
]


def left(**policy: object) -> list[tuple[str, str]]:
    return [(one.code, one.where) for one in apply(FOUND, Policy(**policy))[0]]


# --- naming rules --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["FRZ101", "frz101", "batchnorm-stats-update"])
def test_a_rule_by_code_or_name(word: str) -> None:
    assert chosen(word) == {"FRZ101"}
    assert rule_of(word) is BY_CODE["FRZ101"]


def test_the_beginning_of_a_code_is_a_family() -> None:
    assert chosen("FRZ1") == {code for code in BY_CODE if code[3] == "1"}
    assert chosen("FRZ") == BY_CODE.keys()
    assert "FRZ101" in chosen("FRZ10")
    with pytest.raises(SelectionError, match="FRZ100, FRZ101"):
        rule_of("FRZ1")


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("FRZ190", "'FRZ1"),
        ("FR101", "'FRZ101'"),
        ("batchnorm-stat-update", "'batchnorm-stats-update'"),
        ("batchnorm", "'batchnorm-stats-update'"),
        ("FRZ1011", "'FRZ101'"),
    ],
)
def test_an_unknown_rule_is_answered_with_the_nearest(word: str, nearest: str) -> None:
    with pytest.raises(SelectionError, match="no rule is called") as refused:
        chosen(word)
    assert f"{nearest}" in str(refused.value)
    assert "frostline rule" in str(refused.value)


@pytest.mark.parametrize("word", ["", "*", "F", "zzz", "FRZ9", "\x1b"])
def test_an_unknown_rule_without_a_near_one(word: str) -> None:
    with pytest.raises(SelectionError):
        chosen(word)


def test_a_code_is_told_from_a_target() -> None:
    assert all(map(looks_like_code, ["FRZ1", "frz101", "FRZ999"]))
    assert not any(map(looks_like_code, ["FRZ101:build", "frz.py", "FRZ1234", "FRZX", ""]))


# --- applying ------------------------------------------------------------------------------------


def test_all_is_shown_without_a_policy() -> None:
    assert apply(FOUND, Policy()) == (FOUND, 0, [])


def test_select_and_ignore() -> None:
    assert left(select=["FRZ102"]) == [("FRZ102", "backbone.bn1")]
    assert left(select="FRZ102") == left(select=["eval-undone-by-train"])
    assert {code for code, _ in left(ignore=["FRZ101"])} == {"FRZ102", "FRZ100"}
    assert left(select=["FRZ1"], ignore=["FRZ1"]) == []


@pytest.mark.parametrize(
    ("pattern", "hidden"),
    [
        ("backbone.bn1", {"backbone.bn1"}),
        ("backbone.bn*", {"backbone.bn1", "backbone.bn2", "backbone.bn2.inner"}),
        ("backbone", {"backbone.bn1", "backbone.bn2", "backbone.bn2.inner"}),
        ("backbone.bn", set()),
        ("bn1", set()),
        ("**", {"", "backbone.bn1", "backbone.bn2", "backbone.bn2.inner"}),
        ("*", {"backbone.bn1", "backbone.bn2", "backbone.bn2.inner"}),
    ],
)
def test_an_ignore_in_a_part_of_the_model(pattern: str, hidden: set[str]) -> None:
    kept, count, unused = apply(FOUND, Policy(per_name_ignores={pattern: ["FRZ101"]}))
    gone = [one for one in FOUND if one not in kept]
    assert {one.where for one in gone} == hidden
    assert all(one.code == "FRZ101" for one in gone)
    assert count == len(hidden)
    assert bool(unused) is (not hidden)


def test_an_ignore_that_hides_nothing_is_named() -> None:
    policy = Policy(
        select=["FRZ101"],
        ignore=["FRZ100", "FRZ101"],
        per_name_ignores={"head": ["FRZ1"], "backbone": ["FRZ102", "FRZ101"]},
    )
    kept, count, unused = apply(FOUND, policy)
    assert (kept, count) == ([], 4)  # what select leaves out is not ignored
    assert unused == ["FRZ100", 'FRZ1 at "head"', 'FRZ102 at "backbone"']


words = st.sampled_from(["FRZ1", "FRZ10", "FRZ100", "FRZ101", "FRZ102", "eval-undone-by-train"])
patterns = st.sampled_from(["backbone", "backbone.bn*", "head", "**", "*.bn2", "nosuch"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(words, max_size=2),
    st.lists(words, max_size=2),
    st.dictionaries(patterns, st.lists(words, min_size=1, max_size=2), max_size=2),
)
def test_it_is_what_asking_each_finding_gives(
    select: list[str], ignore: list[str], names: dict[str, list[str]]
) -> None:
    from frostline.selection import select_names

    def inside(where: str, pattern: str) -> bool:
        try:
            return bool(select_names([where], pattern))
        except SelectionError:
            return False

    def named(one: Finding, given: list[str]) -> bool:
        return any(one.code.startswith(word) or one.name == word for word in given)

    asked = [one for one in FOUND if not select or named(one, select)]
    kept = [
        one
        for one in asked
        if not named(one, ignore)
        and not any(inside(one.where, name) and named(one, codes) for name, codes in names.items())
    ]
    told = apply(FOUND, Policy(select, ignore, names))
    assert told[0] == kept
    assert told[1] == len(asked) - len(kept)


@pytest.mark.parametrize(
    "wrong", [{"select": ["FRZ8"]}, {"ignore": ["nosuch"]}, {"per_name_ignores": {"a": ["FRZ8"]}}]
)
def test_a_policy_with_an_unknown_rule_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SelectionError, match="no rule is called"):
        Policy(**wrong)  # type: ignore[arg-type]


# --- the file ------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_a_project_says_what_it_wants(tmp_path: Path) -> None:
    write(
        tmp_path,
        '[tool.frostline]\nselect = ["FRZ1"]\nignore = ["FRZ102"]\nfail-on = "error"\n'
        '[tool.frostline.per-name-ignores]\n"backbone.bn*" = ["batchnorm-stats-update"]\n',
    )
    below = tmp_path / "src" / "deep"
    below.mkdir(parents=True)
    expected = Policy(["FRZ1"], ["FRZ102"], {"backbone.bn*": ["batchnorm-stats-update"]}, "error")
    assert configured(tmp_path) == configured(below) == expected


def test_the_nearest_file_that_speaks_of_frostline_counts(tmp_path: Path) -> None:
    write(tmp_path, '[tool.frostline]\nfail-on = "error"\n')
    inner = write(tmp_path / "inner", '[tool.frostline]\nfail-on = "never"\n')
    silent = write(tmp_path / "silent", '[project]\nname = "x"\n')
    assert configured(inner).fail_on == "never"
    assert configured(silent).fail_on == "error"


@pytest.mark.parametrize("text", ["", "[tool.ruff]\n", "[tool.frostline]\n", "tool = 1\n"])
def test_nothing_said_is_the_default(tmp_path: Path, text: str) -> None:
    assert configured(write(tmp_path, text)) == Policy()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[tool.frostline]\nselct = ["FRZ1"]', "the key 'selct'. The nearest is 'select'"),
        ("[tool.frostline]\nfail_on = 'error'", "The nearest is 'fail-on'"),
        ('[tool.frostline]\nselect = "FRZ1"', "select in [tool.frostline] must be a list of"),
        ("[tool.frostline]\nignore = [1]", "must be a list of codes or names of rules, got the"),
        ("[tool.frostline]\nfail-on = 'fatal'", "must be one of error, warning, info, never"),
        ("[tool.frostline]\nfail-on = [1]", "fail-on in [tool.frostline] must be one of"),
        ("[tool.frostline]\nper-name-ignores = ['FRZ1']", "must be a table of lists"),
        ('[tool.frostline]\nper-name-ignores = {"a" = "FRZ1"}', "must be a table of lists"),
        ('[tool.frostline]\nselect = ["FRZ8"]', "no rule is called 'FRZ8'"),
        ('[tool]\nfrostline = "x"', "must be a table, got the text 'x'"),
        ("[tool.frostline", "cannot read"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(FrostlineError) as refused:
        configured(write(tmp_path, text))
    assert says in str(refused.value)
    assert str(tmp_path / "pyproject.toml") in str(refused.value)


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes("[tool.frostline]\n# ä".encode("utf-16"))
    with pytest.raises(FrostlineError, match="cannot read"):
        configured(tmp_path)
