"""Every way to write to frozen memory is put down to its line; what writes nothing is to none."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from frostline.guarding.pinpointing import Culprit, Pinpoint
from tests.guarding.pinpointing.pinpointing_cases import (
    Copies,
    marked,
    net,
    pinpoint,
    script,
    touched,
    untraced,
)

HEAD = """
import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

"""
STATISTICS = ("norm.running_mean", "norm.running_var")

# What runs, the names it changes, and the operation; the marked line is the culprit's.
WRITES = {
    "in place in a callback": (
        """
def on_batch_end(model):
    with torch.no_grad():
        model.fc.weight.mul_(2)  # <-

def run(model):
    for callback in [on_batch_end]:
        callback(model)
""",
        ("fc.weight",),
        "aten.mul_",
    ),
    ".data": (
        """
def run(model):
    model.fc.weight.data[0, 0] = 7.0  # <-
""",
        ("fc.weight",),
        "aten.copy_",
    ),
    "fused optimizer": (
        """
def run(model):
    optimizer = torch.optim.AdamW(model.fc.parameters(), lr=0.1, fused=True)
    model.eval()(torch.ones(2, 4)).sum().backward()
    optimizer.step()  # <-
""",
        ("fc.weight", "fc.bias"),
        "aten._fused_adamw_",
    ),
    "foreach optimizer": (
        """
def run(model):
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1, foreach=True)
    model.eval()(torch.ones(2, 4)).sum().backward()
    optimizer.step()  # <-
""",
        ("fc.weight", "fc.bias"),
        "aten._foreach_add_",
    ),
    "BatchNorm in a helper": (
        """
def features(model, x):
    return model.norm(  # <-
        x
    )

def run(model):
    model.norm.num_batches_tracked = None
    model.train()
    features(model, torch.randn(8, 4))
""",
        STATISTICS,
        "aten.native_batch_norm",
    ),
    "instance_norm": (
        """
def run(model):
    mean, var = model.norm.running_mean, model.norm.running_var
    F.instance_norm(torch.randn(2, 4, 3), mean, var, use_input_stats=True)  # <-
""",
        STATISTICS,
        None,
    ),
    "load_state_dict": (
        """
def run(model):
    model.fc.load_state_dict({"weight": torch.zeros(4, 4), "bias": model.fc.bias})  # <-
""",
        ("fc.weight",),
        "aten.copy_",
    ),
    "nn.init": (
        """
def run(model):
    nn.init.constant_(model.fc.bias, 3.0)  # <-
""",
        ("fc.bias",),
        "aten.fill_",
    ),
    "out=": (
        """
def run(model):
    torch.add(torch.ones(4, 4), 1, out=model.fc.weight.detach())  # <-
""",
        ("fc.weight",),
        "aten.add",
    ),
    "a view's edge": (
        """
def run(model):
    model.fc.weight.data.view(-1)[-1:].zero_()  # <-
""",
        ("fc.weight",),
        "aten.zero_",
    ),
    "numpy alias": (
        """
def run(model):
    alias = model.fc.weight.detach().numpy()
    for row in range(3):
        if row == 1:
            alias[row, 3] = 7.0  # <-
""",
        ("fc.weight",),
        "line",
    ),
    "numpy on the last line": (
        """
def run(model):
    model.fc.bias.detach().numpy()[0] = 5  # <-
""",
        ("fc.bias",),
        "line",
    ),
    "numpy, then it raises": (
        """
def write(alias):
    alias[0] = 5; raise KeyError  # <-

def run(model):
    try:
        write(model.fc.bias.detach().numpy())
    except KeyError:
        pass
""",
        ("fc.bias",),
        "line",
    ),
    "a generator that resumes": (
        """
def batches(alias):
    yield 1
    alias[0] = 5  # <-
    yield 2

def run(model):
    for batch in batches(model.fc.bias.detach().numpy()):
        model.eval()(torch.ones(2, 4))
""",
        ("fc.bias",),
        "line",
    ),
    "argument before a call": (
        """
def quiet(*values):
    return values

def run(model):
    alias = model.fc.bias.detach().numpy()
    quiet(alias.fill(3), quiet())  # <-
""",
        ("fc.bias",),
        "line",
    ),
    "a library that calls back": (
        """
def callback(x):
    return x

def run(model):
    alias = model.fc.bias.detach().numpy()
    np.apply_along_axis(callback, 0, alias)
    np.copyto(alias, 4)  # <-
    np.apply_along_axis(callback, 0, alias)
""",
        ("fc.bias",),
        "line",
    ),
    "ctypes": (
        """
def run(model):
    ctypes.memset(model.fc.weight.data_ptr(), 0, 8)  # <-
    return model
""",
        ("fc.weight",),
        "line",
    ),
    "read(2)": (
        """
def run(model):
    with open("bytes.bin", "wb") as file:
        file.write(bytes(64))
    with open("bytes.bin", "rb", buffering=0) as file:
        file.readinto(model.fc.weight.detach().numpy())  # <-
""",
        ("fc.weight",),
        "line",
    ),
    "another thread": (
        """
def work(model):
    with torch.no_grad():
        model.fc.bias.add_(1)  # <-

def run(model):
    with ThreadPoolExecutor(1) as pool: pool.submit(work, model).result()
""",
        ("fc.bias",),
        "line",
    ),
    "backward hook": (
        """
def hook(model, grad):
    model.fc.bias.data.add_(1)  # <-

def run(model):
    y = model.eval()(torch.ones(2, 4))
    y.register_hook(lambda grad: hook(model, grad))
    y.sum().backward()
""",
        ("fc.bias",),
        "aten.add_",
    ),
    "undeclared custom operator": (
        """
@torch.library.custom_op("pinpoint_test::sneaky", mutates_args=())
def sneaky(x: torch.Tensor) -> torch.Tensor:
    x.detach().numpy()[0] = 9  # <-
    return x.clone()

def run(model):
    sneaky(model.fc.bias.detach())
""",
        ("fc.bias",),
        "line",
    ),
    "undeclared operator of a library": (
        """
from operator_library import run_it

def run(model):
    run_it(model.fc.bias.detach())  # <-
""",
        ("fc.bias",),
        "pinpoint_test.lies",
    ),
    "compiled model": (
        """
def run(model):
    model.norm.num_batches_tracked = None
    compiled = torch.compile(model.train(), backend="eager")
    compiled(torch.randn(8, 4))  # <-
""",
        STATISTICS,
        "aten.native_batch_norm",
    ),
    "no_grad function under vmap": (
        """
def run(model):
    torch.func.vmap(lambda x: x + model.fc.bias.data.add_(1))(torch.ones(3, 4))  # <-
""",
        ("fc.bias",),
        "aten.add_",
    ),
}

LIBRARY = """
import torch

library = torch.library.Library("pinpoint_test", "FRAGMENT")
library.define("lies(Tensor x) -> Tensor")

@torch.library.impl(library, "lies", "CompositeExplicitAutograd")
def lies(x):
    x.numpy()[0] = 9
    return x.clone()

def run_it(x):
    return torch.ops.pinpoint_test.lies(x)
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    library = tmp_path / "site-packages" / "operator_library.py"
    library.parent.mkdir()
    library.write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(library.parent))
    with untraced():
        yield
    torch._dynamo.reset()


def run(folder: Path, source: str, model: nn.Module) -> list[Culprit]:
    """Run the script under pinpointing; everything is as before afterwards."""
    module = script(folder, source)
    found, _ = pinpoint(model)
    before = touched()
    found.start()
    try:
        module.run(model)
    finally:
        found.stop()
    assert touched() == before
    assert found.notes == []
    return found.culprits


@pytest.mark.parametrize("case", WRITES)
def test_write_is_put_down_to_its_line(case: str, tmp_path: Path) -> None:
    body, names, operation = WRITES[case]
    source = HEAD + body
    (culprit,) = _by_change(run(tmp_path, source, net()), set(names))
    assert culprit.where == f"train.py:{marked(source)}", culprit
    assert culprit.stack[-1] == f"{culprit.where} in {culprit.function}"
    if operation is not None:
        assert culprit.operation == operation


def _by_change(culprits: list[Culprit], names: set[str]) -> list[Culprit]:
    """The first culprit; the others may only say that the same line wrote there again."""
    assert {name for culprit in culprits for name in culprit.names} == names, culprits
    assert len({culprit.where for culprit in culprits}) == 1, culprits
    return culprits[:1]


# What comes near a write to watched memory without being one.
READS = {
    "reads": "model.eval()(torch.ones(2, 4)).sum().backward()",
    "reads, compiled": 'torch.compile(model.eval(), backend="eager")(torch.ones(2, 4))',
    "equal bytes": "model.fc.weight.data.mul_(1)",
    "equal bytes, numpy": "model.fc.weight.detach().numpy()[...] += 0",
    "load of the same": "import copy; model.load_state_dict(copy.deepcopy(model.state_dict()))",
    "optimizer of the head": (
        "o = torch.optim.SGD(model.head.parameters(), 0.1, fused=True); "
        "model.eval()(torch.ones(2, 4)).sum().backward(); o.step()"
    ),
    "statistics in eval mode": "model.norm.eval()(torch.randn(8, 4))",
    "a copy": "copy = model.fc.weight.detach().clone(); copy.zero_(); copy.numpy()[0] = 3",
    "moved, then written": (
        "copy = model.head.weight; model.head.weight = nn.Parameter(copy * 2); "
        "model.head.weight.data.zero_()"
    ),
    "functional_call": (
        "torch.func.functional_call(model.eval(), {'fc.bias': torch.zeros(4)}, torch.ones(2, 4))"
    ),
    "gradient": "model.eval()(torch.ones(2, 4)).sum().backward(); model.fc.weight.grad.zero_()",
}


@pytest.mark.parametrize("case", READS)
def test_what_changes_nothing_has_no_culprit(case: str, tmp_path: Path) -> None:
    assert run(tmp_path, f"{HEAD}def run(model):\n    {READS[case]}\n", net()) == []


@pytest.mark.parametrize(
    ("index", "changed"), [(slice(0, 4), []), (slice(3, 5), ["x"]), (slice(8, 12), []),
                           (slice(7, 9), ["x"]), (slice(4, 8), ["x"])]
)  # fmt: skip
def test_neighbours_in_one_storage(index: slice, changed: list[str]) -> None:
    flat = torch.zeros(12)
    memory = Copies({"x": flat[4:8]})
    found = Pinpoint(memory)
    found.start()
    flat[index].add_(1)
    found.stop()
    assert [name for culprit in found.culprits for name in culprit.names] == changed
    # Outside of the range the content is not even compared.
    assert bool(memory.asked) == bool(changed)


def test_interleaved_neighbour_is_compared_and_spared() -> None:
    table = torch.zeros(4, 6)
    memory = Copies({"even": table[:, ::2]})
    found = Pinpoint(memory)
    found.start()
    table[:, 1::2].add_(1)
    assert found.culprit_of("even") is None
    table[:, 2::2].add_(1)
    found.stop()
    assert found.culprit_of("even") is not None


def test_stack_names_the_users_frames_outermost_first(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(8)]
    calls = [f"def {a}(m):\n    {b}(m)\n" for a, b in pairwise(names)]
    source = f"{HEAD}{''.join(calls)}def f7(m):\n    m.fc.bias.data.add_(1)\n\nrun = f0\n"
    (culprit,) = run(tmp_path, source, net())
    assert [entry.rpartition(" ")[2] for entry in culprit.stack] == names[2:]
    assert all(entry.startswith("train.py:") for entry in culprit.stack)


def test_first_since_forget(tmp_path: Path) -> None:
    source = HEAD + "def run(m):\n    m.fc.bias.data.add_(1)\n    m.fc.bias.data.mul_(3)\n"
    module, model = script(tmp_path, source), net()
    found, _ = pinpoint(model)
    model.fc.bias.data.add_(1)  # before: nobody's
    found.start()
    module.run(model)
    first = found.culprit_of("fc.bias")
    assert first is not None
    assert first.operation == "aten.add_"
    found.forget()
    assert found.culprit_of("fc.bias") is None
    model.fc.bias.data.sub_(1)
    found.stop()
    last = found.culprit_of("fc.bias")
    assert last is not None
    assert last.operation == "aten.sub_"
    assert [culprit.operation for culprit in found.culprits] == [
        "aten.add_",
        "aten.mul_",
        "aten.sub_",
    ]


def test_code_typed_in_is_the_users() -> None:
    model = net()
    found, _ = pinpoint(model)
    found.start()
    cell = compile("def go(m):\n    m.fc.bias.data.add_(1)\n", "<ipython-input-3-abc>", "exec")
    space: dict[str, object] = {}
    exec(cell, space)
    space["go"](model)  # type: ignore[operator]
    found.stop()
    (culprit,) = found.culprits
    assert culprit.where == "<ipython-input-3-abc>:2"


def test_nothing_is_compared_for_what_only_reads() -> None:
    model = net().eval()
    found, memory = pinpoint(model)
    found.start()
    model(torch.ones(2, 4)).sum().backward()
    found.stop()
    assert memory.asked == []


def test_nested_ranges_are_all_found() -> None:
    flat = torch.zeros(100)
    memory = Copies({"all": flat, "part": flat[10:20], "late": flat[50:]})
    found = Pinpoint(memory)
    found.start()
    flat[15].add_(1)
    flat[70].add_(1)
    found.stop()
    assert [set(culprit.names) for culprit in found.culprits] == [{"all", "part"}, {"all", "late"}]
    # Only what was touched is compared, before and after.
    assert sorted(memory.asked) == sorted(["all", "part", "all", "late"] * 2)
