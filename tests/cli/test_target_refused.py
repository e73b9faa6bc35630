"""Targets that give no model: what is said, and the line to type next."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from frostline.cli.targets import load
from frostline.errors import FrostlineError, TargetError

pytestmark = pytest.mark.usefixtures("beside_the_targets")
TARGETS = Path(__file__).parent / "targets"


def _refusal(target: str, *arguments: str) -> str:
    with pytest.raises(TargetError) as refused:
        load(target, arguments)
    return str(refused.value)


def test_without_a_name_the_text_is_listed_and_not_run() -> None:
    assert _refusal("not_to_be_run.py") == (
        "not_to_be_run.py was not run; say which of these gives the model:\n\n"
        "  parse_args   line 8\n"
        "  train        line 12   not usable: it requires model, epochs, log\n"
        "  stream       line 16   not usable: it is async\n"
        "  make_model   line 20\n"
        "  Block        line 24   not usable: it requires width\n"
        "  Wide         line 29   not usable: it requires width\n"
        "  Net          line 33\n"
        "  Lit          line 37\n"
        "  first        line 45\n"
        "  second       line 46\n"
        "  model        line 47\n"
        "  settings     line 48\n\n"
        "Type, for instance\n\n"
        "  frostline summary not_to_be_run.py:make_model"
    )
    assert "No module named 'no_such_library'" in _refusal("not_to_be_run.py:make_model")


@pytest.mark.parametrize(
    ("target", "end"),
    [
        ("classifier.py", "classifier.py:setup"),
        ("classifier.py:", "classifier.py:setup"),
        ("package.models", "package.models:build"),
        ("runs_guarded.py", "runs_guarded.py:setup"),
        ("meddles", "meddles:model"),
    ],
)
def test_the_end_is_the_line_to_type(target: str, end: str) -> None:
    assert _refusal(target).splitlines()[-1] == f"  frostline summary {end}"
    if target != "runs_guarded.py":  # there it is still to be written
        load(end)


def test_nothing_to_list_gives_a_stub(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    said = _refusal(f"{tmp_path}/empty.py")
    assert "nothing in it gives a model without arguments.\n\nAdd a function" in said
    stub = said[said.index("  def setup") : said.index("\n\nand type")].replace(
        "...", "nn.Flatten()"
    )
    (tmp_path / "empty.py").write_text("from torch import nn\nif True:\n" + stub)
    assert isinstance(load(said.rpartition("summary ")[2]).model, nn.Flatten)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("", ["names no file", "file.py:name or package.module:name"]),
        (":f", ["names no file"]),
        ("nosuch.py:f", ["no such file: nosuch.py. A target is file.py:name"]),
        ("clasifier.py:f", ["no such file", "The nearest is 'classifier.py'"]),
        ("no/such/file.py:f", ["no such file: no/such/file.py"]),
        ("package", ["package is a directory", "  frostline summary package/"]),
        ("../targets:f", ["../targets is a directory"]),
        ("nosuch:f", ["no module named nosuch, neither in"]),
        ("no.such", ["no module named no.such"]),
        ("package.model:f", ["package has no 'model'. The nearest is 'models'"]),
        ("sys", ["no source to list"]),
        ("os.path:sep", ["sep of os.path gives an object of the class str"]),
        ("classifier.py:build()", ["'build()' is no name", "summary classifier.py:build"]),
        ("classifier.py:Net.build", ["'Net.build' is no name", "summary classifier.py:Net"]),
        ("classifier.py:biuld", ["was imported, and has no 'biuld'. The nearest is 'build'"]),
        ("runs_guarded.py:model", ['under `if __name__ == "__main__":`']),
        ("runs_guarded.py:modle", ["has no 'modle'. To see what it has, type"]),
        ("classifier.py:build_for", ["requires classes, width, and", "classes=..., width=..."]),
        ("classifier.py:NeedsClasses", ["NeedsClasses of classifier.py requires classes, and"]),
        ("classifier.py:build_later", ["is an async function", "asyncio.run(build_later())"]),
        ("classifier.py:build_wrapped_later", ["is an async function"]),
        ("package/models.py:build", [f"cd {TARGETS}\n  frostline summary package.models:build"]),
        ("package.broken:f", ["your code raised ImportError", "no_such_part"]),
        ("not_to_be_run:model", ["your code raised ModuleNotFoundError", "no_such_library"]),
        ("gives.py:number", ["number of gives.py gives an object of the class int. Expected a mo"]),
        ("gives.py:none", ["gives None", "return {"]),
        ("gives.py:nothing", ["nothing() of gives.py gives None", "return {"]),
        ("gives.py:pair", ["a tuple (Linear, SGD)", '"optimizer": optimizer}']),
        ("gives.py:plain_class", ["plain_class of gives.py gives the class Plain. Expected"]),
        ("gives.py:model_class", ["the class ReLU. Expected"]),
        ("gives.py:Linear", ["requires in_features, out_features"]),
        ("gives.py:function", ["the function nothing, not called"]),
        ("gives.py:state_dict", ["gives a state dict", "model.load_state_dict"]),
        ("gives.py:no_model", ["must have a model", "has no such key"]),
        ("gives.py:empty", ["must have a model", "has no such key"]),
        ("gives.py:model_is_none", ["has None there"]),
        ("gives.py:misspelt", ["the key 'optimiser'. The nearest is 'optimizer'. The keys are"]),
        ("gives.py:numbered", ["the key 1. The keys are 'model', 'frozen'"]),
        ("gives.py:optimizer_class", ["'optimizer' in the dict", "the class SGD. Expected one"]),
        ("gives.py:optimizers", ["an object of the class list. Expected one torch.optim.Optim"]),
        (
            "gives.py:of_another",
            ["steps none of the model's", "torch.optim.SGD(model.parameters()"],
        ),
        ("gives.py:loss_is_a_number", ["which cannot be called", "compute_loss(model, batch) -> "]),
        (
            "gives.py:criterion_object",
            ["a criterion, CrossEntropyLoss. The contract is compute_lo"],
        ),
        ("gives.py:criterion_class", ["a criterion, CrossEntropyLoss"]),
        ("gives.py:criterion_function", ["a criterion, cross_entropy", "return criterion(model("]),
        ("gives.py:criterion_partial", ["a criterion, cross_entropy"]),
        ("gives.py:loss_of_one", ["<lambda>(outputs), cannot be called with a model and a batch"]),
        ("gives.py:loss_of_three", ["missing a required argument: 'labels'"]),
    ],
)
def test_what_is_refused(target: str, parts: list[str]) -> None:
    said = _refusal(target)
    assert [part for part in parts if part not in said] == [], said
    assert ("Traceback" in said) is parts[0].startswith("your code")


def test_the_error_is_one_of_ours() -> None:
    assert issubclass(TargetError, FrostlineError)
    assert issubclass(TargetError, ValueError)


def test_the_line_for_a_relative_import_works() -> None:
    said = _refusal("package/models.py:build")
    line = said.rpartition("summary ")[2]
    assert isinstance(load(line).model, nn.Linear)


def test_a_relative_import_of_a_neighbour_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("import lone\n")
    (tmp_path / "lone.py").write_text("from . import other\n")
    said = _refusal(f"{tmp_path}/t.py:f")
    assert "your code raised ImportError" in said
    assert f'  File "{tmp_path}/lone.py", line 1, in <module>\n' in said


def test_a_directory_is_no_module(tmp_path: Path) -> None:
    with chdir(tmp_path):
        Path("folder").mkdir()
        assert "folder is a directory without code" in _refusal("folder:f")
        assert "folder is a directory. Name a file" in _refusal("folder")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("name", ["", ":model"])
def test_a_checkpoint_gets_the_function_that_loads_it(
    tmp_path: Path, suffix: str, name: str
) -> None:
    path = tmp_path / f"best{suffix}"
    state = nn.Linear(2, 1).state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if suffix == ".ckpt" else state, path)
    said = _refusal(f"{path}{name}")
    assert "a checkpoint has no modes or optimizer" in said
    assert said.endswith("\n\n  frostline summary build.py:build")
    stub = said.split("\n\n")[1]
    assert len(stub.splitlines()) == 5
    (tmp_path / "build.py").write_text(
        "from torch import nn\nif True:\n" + stub.replace("...", "nn.Linear(2, 1)")
    )
    assert torch.equal(load(f"{tmp_path}/build.py:build").model.weight, state["weight"])


def test_a_notebook(tmp_path: Path) -> None:
    (tmp_path / "train.ipynb").write_text("{}")
    assert "is a notebook. Copy the cell" in _refusal(f"{tmp_path}/train.ipynb:f")


@pytest.mark.parametrize("name", ["", ":build"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            b"x = 1\ndef build(:\n    pass\n",
            "line 2\n    def build(:\n              ^\nSyntaxError",
        ),
        (b"x = '\xff'\n", "SyntaxError: (unicode error) 'utf-8' codec"),
        (b"x = 1\0\n", "null bytes"),
    ],
)
def test_no_python(tmp_path: Path, name: str, source: bytes, said: str) -> None:
    (tmp_path / "t.py").write_bytes(source)
    text = _refusal(f"{tmp_path}/t.py{name}")
    assert text.startswith(f"{tmp_path}/t.py is no Python that this interpreter reads:\n\n")
    assert said in text


def test_no_python_in_a_module(tmp_path: Path) -> None:
    with chdir(tmp_path):
        Path("broken.py").write_text("def build(:\n")
        said = _refusal("broken:build")
    assert "your code raised SyntaxError while it was imported" in said
    assert f'  File "{tmp_path}/broken.py", line 1\n    def build(:\n' in said


# What the user's code raises


@pytest.mark.parametrize(
    ("target", "when", "lines"),
    [
        ("fails_early.py:model", "while it was imported, which runs all but", [10, 7]),
        ("fails_early:model", "while it was imported", [10, 7]),
        ("meddles.py:fails", "while fails() ran", [28]),
    ],
)
def test_an_exception_is_shown_from_their_first_line_on(
    target: str, when: str, lines: list[int]
) -> None:
    said = _refusal(target)
    path = TARGETS / f"{target.partition(':')[0].removesuffix('.py')}.py"
    assert said.startswith(f"{target}: your code raised ")
    assert when in said.splitlines()[0]
    frames = [line for line in said.splitlines() if line.startswith("  File ")]
    assert [f.rpartition(", in ")[0] for f in frames] == [
        f'  File "{path}", line {line}' for line in lines
    ]
    assert said.count("Traceback") == 1
    assert said.endswith(("RuntimeError: no data here", "KeyError: 'out of luck'"))


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("exits_early.py:model", ["sys.exit('no data here') while it was imported", "(line 7 of"]),
        ("meddles.py:exits", ["sys.exit(3) while exits() ran (line 33 of meddles.py)"]),
        ("reads_arguments.py:build", ["sys.exit(2) while build() ran", ":build -- --data DIR"]),
    ],
)
def test_an_exit_is_told(target: str, parts: list[str]) -> None:
    said = _refusal(target)
    assert [part for part in parts if part not in said] == [], said


def test_a_broken_lookup_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text("def __getattr__(name):\n    raise OSError('no disk')\n")
    assert "your code raised OSError while model was looked up" in _refusal(
        f"{tmp_path}/lazy.py:model"
    )
