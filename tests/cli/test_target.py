"""Targets as people type them: what is loaded, and that nothing stays behind."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frostline.cli.prints import prints_to_stderr
from frostline.cli.targets import Setup, load, loaded
from frostline.cli.targets.spelling import split
from frostline.errors import TargetError
from tests.cli.sharing import shared

pytestmark = pytest.mark.usefixtures("beside_the_targets")
TARGETS = Path(__file__).parent / "targets"


@pytest.mark.parametrize(
    "target",
    [
        "classifier.py:build",
        "classifier.py:setup",
        "classifier.py:model",
        "classifier.py:Net",
        "./classifier.py:build",
        "../targets/classifier.py:build",
        f"{TARGETS}/classifier.py:build",
        "classifier:build",
    ],
)
def test_a_function_an_attribute_or_a_class_gives_the_model(target: str) -> None:
    with loaded(target) as setup:
        assert setup.model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert type(setup.model).__module__ == "classifier"
    assert setup.model.backbone[0].weight.requires_grad is target.endswith("Net")


def test_a_dict_brings_what_belongs_to_the_model() -> None:
    with loaded("classifier.py:setup") as setup:
        assert setup.compute_loss is not None
        assert setup.compute_loss(setup.model, setup.batch).ndim == 0
    assert setup.frozen == "backbone"
    assert isinstance(setup.optimizer, torch.optim.AdamW)
    assert setup.dataset == [0, 1, 2]


def test_a_model_alone_brings_nothing_else() -> None:
    setup = load("classifier.py:model")
    assert vars(setup) == vars(Setup(setup.model))
    with pytest.raises(AttributeError):
        setup.model = nn.Flatten()  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["of_both", "all_none", "loss_with_default", "loss_partial", "build_partial"]
)
def test_near_misses_of_the_refusals_are_taken(name: str) -> None:
    assert isinstance(load(f"gives.py:{name}").model, nn.Linear)


@pytest.mark.parametrize("target", ["torch.nn:Flatten", "timm.models.resnet:resnet18"])
def test_an_installed_library(target: str) -> None:
    assert isinstance(load(target).model, nn.Module)


def test_a_part_of_a_package_here() -> None:
    with loaded("package.models:build", ["--width", "3"]) as setup:
        assert isinstance(setup.model, nn.Linear)
        assert sys.path[0] == os.getcwd()
        assert sys.argv == [str(TARGETS / "package/models.py"), "--width", "3"]


def test_the_code_sees_its_own_argv(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("reads_arguments.py:build", ["--width", "7"]).model.in_features == 7
    with loaded("classifier.py:build"):
        assert sys.modules["classifier"].words == ["classifier.py"]
        assert sys.modules["classifier"].name_in_import == "classifier"
        assert sys.path[0] == str(TARGETS)


def test_while_open_a_forward_may_import_its_neighbour() -> None:
    image = torch.zeros(1, 3, 8, 8)
    with loaded("classifier.py:build") as setup:
        setup.model(image)
    with pytest.raises(ModuleNotFoundError, match="backbones"):
        setup.model(image)


def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    found = {}
    for name in ("json.py", "with-dash.py", "__main__.py", "no_suffix"):
        (tmp_path / name).write_text("from torch import nn\nclass Net(nn.Flatten): ...\n")
        found[name] = type(load(f"{tmp_path}/{name}:Net").model).__module__
    assert found == {
        "json.py": "_target_json",
        "with-dash.py": "_target_with-dash",
        "__main__.py": "_target___main__",
        "no_suffix": "no_suffix",
    }


def test_a_script_behind_a_link_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "linked.py").symlink_to(TARGETS / "meddles.py")
    assert isinstance(load(f"{tmp_path}/linked.py:model").model, nn.Sequential)


def test_under_safe_path_the_folder_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "flags", SimpleNamespace(**{**flags, "safe_path": True}))
        with pytest.raises(TargetError, match="No module named 'backbones'"):
            load("classifier.py:build")
        function = load("gives.py:all_right").compute_loss
    # Not "gives", by which a library of that name would be found.
    assert function is not None
    assert function.__module__ == "_target_gives"


@pytest.mark.slow
def test_worker_processes_find_the_classes_of_the_target() -> None:
    with loaded("classifier.py:build"):
        options = sys.modules["classifier"].Options(classes=5)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(repr, (options,)) == "Options(classes=5, words=())"


# What stays behind: nothing, which a fixture compares after every test


@pytest.mark.parametrize("name", ["model", "build"])
def test_what_the_code_meddled_with_is_put_back(name: str) -> None:
    before = shared()
    with loaded(f"meddles.py:{name}", ["x"]):
        assert shared()["objects"] != before["objects"]
        assert os.getcwd() == os.sep
        assert {"meddles", "backbones"} <= sys.modules.keys()
    assert shared() == before


@pytest.mark.parametrize(
    ("name", "error"),
    [("fails", TargetError), ("exits", TargetError), ("interrupted", KeyboardInterrupt)],
)
def test_it_is_put_back_after_an_exception(name: str, error: type[BaseException]) -> None:
    before = shared()
    with pytest.raises(error), prints_to_stderr():
        load(f"meddles.py:{name}")
    assert shared() == before


def test_it_is_put_back_when_the_work_on_the_model_fails() -> None:
    before = shared()
    with pytest.raises(ZeroDivisionError), prints_to_stderr(), loaded("meddles.py:model"):
        raise ZeroDivisionError
    assert shared() == before


def test_libraries_from_elsewhere_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, code = tmp_path / "code" / "site", tmp_path / "code"
    site.mkdir(parents=True)
    (site / "library.py").write_text("")
    built_in = next(name for name in sys.builtin_module_names if name not in sys.modules)
    (code / "mine.py").write_text(
        f"import library, {built_in}, torch\nmodel = torch.nn.Flatten()\n"
    )
    with monkeypatch.context() as patch, chdir(code):
        patch.syspath_prepend(site)
        load("mine.py:model")
    assert sys.modules.pop("library").__file__ == str(site / "library.py")
    assert built_in in sys.modules


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    gone, home = tmp_path / "gone", os.getcwd()
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        with pytest.raises(TargetError, match="current directory exists no more"):
            load("torch.nn:Flatten")
    finally:
        os.chdir(home)


# How it is written


NAMES = st.text("ab_9é", min_size=1).filter(str.isidentifier)
# No path on any machine that tests run on.
PATHS = st.text("ab:./\\ é").map("/no such/{}.py".format)


@given(PATHS, NAMES)
def test_the_last_colon_splits(path: str, name: str) -> None:
    assert split(f"{path}:{name}") == (path, name)
    assert split(f"{path}:") == (path, None)


@given(PATHS.map(lambda path: path.replace(":", "")))
def test_without_a_colon_there_is_no_name(path: str) -> None:
    assert split(path) == (path, None)


@pytest.mark.parametrize(
    ("target", "where", "name"),
    [
        (r"C:\t.py:f", r"C:\t.py", "f"),
        (r"C:\t.py", r"C:\t.py", None),
        ("C:/t.py", "C:/t.py", None),
        ("a:b.py:f", "a:b.py", "f"),
        ("package.module:f", "package.module", "f"),
        ("package.module", "package.module", None),
        (":f", "", "f"),
        ("", "", None),
    ],
)
def test_splits(target: str, where: str, name: str | None) -> None:
    assert split(target) == (where, name)


def test_what_exists_is_a_path(tmp_path: Path) -> None:
    with chdir(tmp_path):
        assert split("a.py:f") == ("a.py", "f")
        Path("a.py:f").write_text("def g(): ...\n")
        assert split("a.py:f") == ("a.py:f", None)
        assert split("a.py:f:g") == ("a.py:f", "g")
        with pytest.raises(TargetError, match=r"\n  frostline summary a\.py:f:g$"):
            load("a.py:f")
        shutil.copy(TARGETS / "gives.py", r"C:\t.py")
        assert isinstance(load(r"C:\t.py:net").model, nn.Linear)
