"""Two and three real ranks compare their frozen bytes; nobody hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from frostline.guarding import ranks

ROOT = Path(__file__).parents[2]


def _address(kind: str, folder: Path) -> str:
    if kind == "file":
        return f"file://{folder / 'store'}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module", params=["tcp", pytest.param("file", marks=pytest.mark.slow)])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of three ranks found in each scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    address = _address(request.param, folder)
    command = [sys.executable, "-m", "tests.guarding.ranks_worker"]
    running = [
        subprocess.Popen(
            [*command, str(rank), "3", address, str(folder / f"{rank}.json")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        output = [process.communicate(timeout=60)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def _same_for(said: Any, scenario: str, of: tuple[int, ...] = (0, 1, 2)) -> list[Any]:
    """The reports, which all of these ranks agree on."""
    first, *others = (said[rank][scenario] for rank in of)
    assert all(other == first for other in others)
    return first


def test_equal(said: Any) -> None:
    (report,) = _same_for(said, "equal")
    assert (report["ranks"], report["missing"]) == (3, [])
    assert (report["differing"], report["notes"]) == ([], [])


def test_the_majority_says_who_differs(said: Any) -> None:
    (report,) = _same_for(said, "one differs")
    assert report["differing"] == [[1, ["body.bias"]]]
    assert report["texts"] == ["rank 1 has other bytes than ranks 0 and 2"]
    assert report["notes"] == []


def test_without_a_majority_all_are_named(said: Any) -> None:
    (report,) = _same_for(said, "each differs")
    assert report["differing"] == [[0, ["mean"]], [1, ["mean"]]]
    assert report["texts"] == [
        "rank 0 has other bytes than rank 2",
        "rank 1 has other bytes than rank 2",
    ]


def test_other_names_are_a_note_and_the_shared_ones_are_compared(said: Any) -> None:
    (report,) = _same_for(said, "names differ")
    assert report["differing"] == [[0, ["mean"]]]
    (note,) = report["notes"]
    assert note.startswith("ranks guard different tensors")
    assert note.endswith("body.weight on rank 0; body.weight on rank 1")


def test_a_rank_that_does_not_come_is_a_note(said: Any) -> None:
    (report,) = _same_for(said, "one stays away", of=(0, 1))
    assert (report["missing"], report["differing"]) == ([2], [])
    assert report["notes"] == ["rank 2 did not report within 0.3 s and was not compared"]


def test_a_guard_on_rank_0_only(said: Any) -> None:
    (report,) = said[0]["alone"]
    assert (report["missing"], report["differing"]) == ([1, 2], [])
    assert report["notes"] == ["ranks 1 and 2 did not report within 0.2 s and were not compared"]


def test_each_comparison_meets_its_own(said: Any) -> None:
    reports = _same_for(said, "four in a row")
    assert [report["differing"] for report in reports] == [
        [],
        [[2, ["mean"]]],
        [],
        [[0, ["mean"]]],
    ]


def test_the_order_of_arrival_does_not_matter(said: Any) -> None:
    (report,) = _same_for(said, "one after the other")
    assert (report["missing"], report["differing"]) == ([], [[0, ["mean"]]])


def test_who_holds_the_store_waits_for_the_readers(said: Any) -> None:
    (report,) = _same_for(said, "last")
    assert (report["notes"], report["differing"]) == ([], [[1, ["mean"]]])


MOST = {
    "one of three": ({0: "a", 1: "b", 2: "a"}, [0, 2]),
    "two ranks: the higher one is taken as right": ({0: "a", 1: "b"}, [1]),
    "two against two": ({0: "a", 1: "b", 2: "b", 3: "a"}, [1, 2]),
    "a majority of low ranks": ({0: "a", 1: "a", 2: "b"}, [0, 1]),
    "all equal": ({0: "a", 1: "a"}, [0, 1]),
}


@pytest.mark.parametrize(("digests", "right"), MOST.values(), ids=MOST)
def test_most(digests: dict[int, str], right: list[int]) -> None:
    assert ranks._most(digests) == right


def test_two_ranks_accuse_the_lower_one() -> None:
    tables = {0: {"w": "00"}, 1: {"w": "01"}}
    report = ranks._judge(2, (), tables, [])
    assert report.differing == [(0, ["w"])]
    assert report.text_of(0) == "rank 0 has other bytes than rank 1"


def test_many_ranks_and_names_are_counted() -> None:
    tables = {rank: {"w": "00"} for rank in range(6)} | {6: {"w": "01"}}
    report = ranks._judge(7, (), tables, [])
    assert report.text_of(6) == "rank 6 has other bytes than 6 other ranks"
    many = {0: {}, 1: {f"layer.{i}": "00" for i in range(9)}}
    (note,) = ranks._judge(2, (), many, []).notes
    assert note.endswith("layer.0, layer.1, layer.2, layer.3 and 5 more tensors on rank 1")


def test_without_a_process_group() -> None:
    assert not ranks.are_several()
    assert ranks.compare({"w": b"0" * 16}, "none") == ranks.RankReport(1)
    assert ranks.shared_key("none") != ranks.shared_key("none")


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_rank(one_rank: None) -> None:
    assert not ranks.are_several()
    assert ranks.compare({"w": b"0" * 16}, "one") == ranks.RankReport(1)
