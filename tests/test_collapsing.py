"""Names in few lines: what is printed stands for what is there."""

from __future__ import annotations

import pytest

from frostline._collapsing import collapse, groups

RESNET = [
    f"layer{i}.{j}.bn{k}.weight"
    for i, blocks in enumerate((3, 4, 6, 3), start=1)
    for j in range(blocks)
    for k in (1, 2, 3)
]

TABLE = {
    "nothing": ([], []),
    "one": (["layer1.0.weight"], [("layer1.0.weight", 1)]),
    "a run": (["a.0", "a.1", "a.2"], [("a.{0-2}", 3)]),
    "gaps": (["a.0", "a.2", "a.3"], [("a.{0,2-3}", 3)]),
    "within a word": (["bn1.bias", "bn2.bias"], [("bn{1-2}.bias", 2)]),
    "1 and 10": (["layer1", "layer10"], [("layer{1,10}", 2)]),
    "by number": (["a.10", "a.9"], [("a.{9-10}", 2)]),
    "no number": (["a.weight", "a.bias"], [("a.weight", 1), ("a.bias", 1)]),
    "the same depth only": (["a.0", "a.0.1"], [("a.0", 1), ("a.0.1", 1)]),
    "other words": (["a.0.w", "b.0.w"], [("a.0.w", 1), ("b.0.w", 1)]),
    "all of a grid": (["a.0.b1", "a.0.b2", "a.1.b1", "a.1.b2"], [("a.{0-1}.b{1-2}", 4)]),
    "some of a grid": (["a.0.b1", "a.0.b2", "a.1.b1"], [("a.*.b{1-2}", 3)]),
    "many gaps": ([f"a.{i}" for i in range(0, 20, 2)], [("a.*", 10)]),
    "a ragged net": (RESNET, [("layer{1-4}.*.bn{1-3}.weight", 48)]),
    "leading zeros": (["a.01", "a.02"], [("a.{01,02}", 2)]),
    "twice the same": (["a.0", "a.0"], [("a.0", 1)]),
    "numbers alone": (["0", "1"], [("{0-1}", 2)]),
    "the root": (["", "a"], [("", 1), ("a", 1)]),
    "no numbers of siblings": (
        ["a." + "1" * 5000, "a." + "2" * 5000],
        [("a." + "1" * 5000, 1), ("a." + "2" * 5000, 1)],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_collapse(case: str) -> None:
    names, expected = TABLE[case]
    assert collapse(names) == expected


@pytest.mark.parametrize("case", TABLE)
def test_each_name_is_in_one_group(case: str) -> None:
    names, _ = TABLE[case]
    members = [name for _, several in groups(names) for name in several]
    assert sorted(members) == sorted(set(names))
