"""Wrong use: the message says what, where and what to write; nothing is half done afterwards."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.errors import (
    FreezeError,
    FrostlineError,
    FrostlineWarning,
    FrozenStateChanged,
    ModelGone,
    SelectionError,
    UnsupportedTensor,
)
from frostline.freezing import held_class
from tests.everything import everything, forget_other_tests
from tests.zoo import ZOO


def mlp() -> nn.Module:
    """With gradients, mixed modes and flags: there is much that could be left half done."""
    model = ZOO["mlp_bn1d"].build()
    ZOO["mlp_bn1d"].loss(model, ZOO["mlp_bn1d"].batch()).backward()
    model.backbone[4].eval()
    model.backbone[3].bias.requires_grad_(False)
    return model


def adam(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer.step()
    return optimizer


def refused(
    call: Callable[[], Any],
    model: nn.Module,
    error: type[Exception],
    says: str,
    optimizer: torch.optim.Optimizer | None = None,
) -> str:
    """The message of the refusal; the model must be exactly as it was."""
    forget_other_tests()
    before = everything(model, optimizer)
    with pytest.raises(error, match=re.escape(says)) as caught:
        call()
    assert everything(model, optimizer) == before
    assert fl.parts(model) == []
    return str(caught.value)


# --- what is no model ----------------------------------------------------------------------------

Call = Callable[[nn.Module], Any]

NO_MODEL: dict[str, tuple[Call, type[Exception], list[str]]] = {
    "parameters": (
        lambda m: fl.freeze(m.parameters()),
        TypeError,
        ["needs the model", "did you pass model.parameters()?", "fl.freeze(model, 'backbone')"],
    ),
    "a list of parameters": (
        lambda m: fl.freeze(list(m.parameters())),
        TypeError,
        ["got a list; did you pass model.parameters()?"],
    ),
    "a state dict": (
        lambda m: fl.freeze(m.state_dict()),
        TypeError,
        ["needs the model (an nn.Module) first and got a OrderedDict"],
    ),
    "a tensor": (lambda m: fl.freeze(m.head.weight), TypeError, ["got a tensor"]),
    "None": (lambda m: fl.freeze(None), TypeError, ["got a NoneType"]),
    "a class": (lambda m: fl.freeze(nn.Linear), TypeError, ["got a type"]),
    "swapped": (
        lambda m: fl.freeze("backbone", m),
        TypeError,
        ["the arguments of freeze are swapped", "fl.freeze(model, 'backbone')"],
    ),
    "swapped, by a list": (
        lambda m: fl.freeze(["backbone"], m),
        TypeError,
        ["must be the model: fl.freeze(model, select)"],
    ),
    "unfreeze swapped": (
        lambda m: fl.unfreeze("backbone", m),
        TypeError,
        ["the arguments of unfreeze are swapped", "fl.unfreeze(model, 'backbone')"],
    ),
    "unfreeze parameters": (
        lambda m: fl.unfreeze(m.parameters()),
        TypeError,
        ["fl.unfreeze needs the model", "did you pass model.parameters()?"],
    ),
    "parts of a string": (lambda m: fl.parts("model"), TypeError, ["fl.parts needs the model"]),
    "two names without a list": (
        lambda m: fl.freeze(m, "backbone", "head"),
        TypeError,
        ["positional arguments"],
    ),
    "a compiled function": (lambda m: fl.freeze(m.forward), TypeError, ["needs the model"]),
}


@pytest.mark.parametrize(("call", "error", "says"), NO_MODEL.values(), ids=NO_MODEL)
def test_no_model(call: Call, error: type[Exception], says: list[str]) -> None:
    model = mlp()
    message = refused(lambda: call(model), model, error, says[0])
    assert all(text in message for text in says), message


# --- switches and selectors ----------------------------------------------------------------------

SWITCHES: dict[str, tuple[Call, type[Exception], list[str]]] = {
    "stats": (
        lambda m: fl.freeze(m, stats="frozen"),
        ValueError,
        ["stats='frozen'", "expected 'hold', 'batch' or 'update'"],
    ),
    "mode": (
        lambda m: fl.freeze(m, mode="train"),
        ValueError,
        ["mode='train'", "expected 'eval' or 'follow'"],
    ),
    "optimizer is a list": (
        lambda m: fl.freeze(m, "backbone", optimizer=list(m.parameters())),
        TypeError,
        ["optimizer is a list, no torch optimizer"],
    ),
    "a typo": (
        lambda m: fl.freeze(m, "backbonne"),
        SelectionError,
        ['"backbonne" matches nothing', "The nearest names are: 'backbone'"],
    ),
    "a typo deep down": (
        lambda m: fl.freeze(m, "backbone.11"),
        SelectionError,
        ['"backbone.11" matches nothing', "'backbone.1'"],
    ),
    "a typo in a list": (
        lambda m: fl.freeze(m, ["backbone", "haed"]),
        SelectionError,
        ['"haed" matches nothing', "'head'"],
    ),
    "a typo in exclude": (
        lambda m: fl.freeze(m, exclude="haed"),
        SelectionError,
        ['"haed" matches nothing', "'head'"],
    ),
    "everything excluded": (
        lambda m: fl.freeze(m, "head", exclude="head"),
        SelectionError,
        ['nothing in Sequential is left of "head" after exclude="head"'],
    ),
    "an empty list": (lambda m: fl.freeze(m, []), SelectionError, ["empty list", "name at least"]),
    "a number": (
        lambda m: fl.freeze(m, 3),
        SelectionError,
        ["cannot select by int", "a name or pattern"],
    ),
    "another model's module": (
        lambda m: fl.freeze(m, nn.Linear(2, 2)),
        SelectionError,
        ["the Linear given as selector is not a submodule of this Sequential", "Select by name"],
    ),
    "unfreeze with a typo": (
        lambda m: fl.unfreeze(m, "backbonne"),
        SelectionError,
        ["'backbone'"],
    ),
}


@pytest.mark.parametrize(("call", "error", "says"), SWITCHES.values(), ids=SWITCHES)
def test_switches_and_selectors(call: Call, error: type[Exception], says: list[str]) -> None:
    model = mlp()
    message = refused(lambda: call(model), model, error, says[0])
    assert all(text in message for text in says), message


def test_flagged_without_a_flag() -> None:
    model = mlp().requires_grad_(True)
    refused(lambda: fl.freeze(model, fl.FLAGGED), model, SelectionError, "no parameter of this")


def test_errors_are_of_one_tree_and_of_the_usual_kinds() -> None:
    assert issubclass(SelectionError, FrostlineError | ValueError)
    assert issubclass(SelectionError, ValueError)
    assert issubclass(FreezeError, RuntimeError)
    assert issubclass(ModelGone, ReferenceError)


# --- the handle taken for the model --------------------------------------------------------------


def test_model_is_fl_freeze_model() -> None:
    model = mlp()
    handle: Any = fl.freeze(model, "backbone")
    with pytest.raises(TypeError, match=r"works in place and returns a handle.*Drop the assign"):
        handle(torch.zeros(2, 12))
    with pytest.raises(AttributeError, match=r"'parameters': fl\.freeze works in place"):
        handle.parameters()
    with pytest.raises(FreezeError, match=r"fl\.freeze got a FrozenPart.*Keep them apart"):
        fl.freeze(handle, "head")
    with pytest.raises(FreezeError, match=r"fl\.unfreeze got a FrozenPart"):
        fl.unfreeze(handle)


# --- what cannot be held -------------------------------------------------------------------------


def test_script_module() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(mlp())
    message = _refusal(scripted, None, FreezeError)
    assert "the model itself (RecursiveScriptModule) cannot be frozen" in message
    assert "script it after that" in message
    assert all(p.requires_grad for p in scripted.head.parameters())


def test_script_module_below() -> None:
    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model.backbone.tail = torch.jit.script(nn.Linear(16, 16))
    message = _refusal(model, "backbone", FreezeError)
    assert message.startswith("backbone.tail (RecursiveScriptModule) cannot be frozen")


def _refusal(model: nn.Module, select: Any, error: type[Exception]) -> str:
    flags = [p.requires_grad for p in model.parameters()]
    classes = [type(m) for m in model.modules()]
    with pytest.raises(error) as caught:
        fl.freeze(model, select)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [type(m) for m in model.modules()] == classes
    assert fl.parts(model) == []
    return str(caught.value)


def test_lazy_module() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    message = _refusal(model, None, FreezeError)
    assert "0 (LazyLinear) cannot be frozen" in message
    assert "run one forward pass first" in message
    model(torch.randn(8, 3))
    part = fl.freeze(model)
    model.train()(torch.randn(8, 3))
    assert part.ok


def test_lazy_module_outside_of_the_part() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.LazyLinear(1)})
    part = fl.freeze(model, "backbone")
    assert part.ok
    assert "1 parameter" not in str(part)
    assert "trainable   2 parameters" in str(part)


def test_meta_tensors_leave_the_part_unsealed() -> None:
    with torch.device("meta"):
        model = ZOO["mlp_bn1d"].make()
    part = fl.freeze(model, "backbone")
    assert not part.sealed
    assert "part.seal()" in str(part)
    with pytest.raises(FreezeError, match=r"not sealed.*Call part\.seal\(\)"):
        part.changes()
    with pytest.raises(UnsupportedTensor, match=r"backbone\.0\.weight"):
        part.seal()
    model.load_state_dict(ZOO["mlp_bn1d"].build().state_dict(), assign=True)
    model.train()
    part.seal()
    assert part.ok
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_a_manifest_on_meta_tensors_freezes_nothing() -> None:
    real = ZOO["mlp_bn1d"].build()
    manifest = fl.manifest(fl.freeze(real, "backbone"))
    with torch.device("meta"):
        model = ZOO["mlp_bn1d"].make()
    with pytest.raises(UnsupportedTensor, match="backbone"):
        fl.freeze(model, manifest)
    assert fl.parts(model) == []
    assert all(p.requires_grad for p in model.parameters())


def test_an_unsealable_tensor_rolls_back_exactly() -> None:
    model = mlp()
    model.backbone[1].register_buffer("mask", torch.eye(3).to_sparse())
    optimizer = adam(model)
    message = refused(
        lambda: fl.freeze(model, "backbone", optimizer=optimizer),
        model,
        UnsupportedTensor,
        "backbone.1.mask",
        optimizer,
    )
    assert "sparse" in message
    fl.freeze(model, "backbone", seal=False)
    assert not model.backbone[0].weight.requires_grad


def test_an_interrupt_in_the_middle_rolls_back_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes between: here the second norm's hold fails, as Ctrl-C could."""
    forget_other_tests()
    model, calls = mlp(), iter(range(100))
    optimizer = adam(model)
    real = held_class.swap_in

    def failing(name: str, module: nn.Module, *more: Any) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        real(name, module, *more)

    monkeypatch.setattr(held_class, "swap_in", failing)
    before = everything(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        fl.freeze(model, "backbone", optimizer=optimizer)
    assert everything(model, optimizer) == before


class Stubborn(nn.BatchNorm1d):
    """Refuses what Python refuses where layouts differ: another class for its object."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "__class__":
            raise TypeError("object layout differs")
        super().__setattr__(name, value)


def test_a_class_that_python_does_not_let_go() -> None:
    model = mlp()
    model.backbone[4] = Stubborn(16)
    model.backbone[4].running_mean.fill_(1)
    message = refused(
        lambda: fl.freeze(model, "backbone"),
        model,
        FreezeError,
        "backbone.4 (Stubborn) cannot be held: object layout differs",
    )
    assert "fl.freeze(model, ..., exclude='backbone.4')" in message
    fl.freeze(model, "backbone", exclude="backbone.4")


# --- optimizers ----------------------------------------------------------------------------------


def test_nothing_left_to_train() -> None:
    model = mlp()
    optimizer = adam(model)
    message = refused(
        lambda: fl.freeze(model, optimizer=optimizer),
        model,
        FreezeError,
        "would have nothing to train",
        optimizer,
    )
    assert "all 10 parameters of this Adam would be frozen" in message
    assert "exclude='head'" in message


def test_something_left_to_train() -> None:
    model = mlp()
    optimizer = adam(model)
    fl.freeze(model, exclude="head.bias", optimizer=optimizer)
    assert [p is model.head.bias for p in optimizer.state] == [True]


def test_lbfgs_at_the_freeze_and_at_its_step() -> None:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters())
    message = refused(
        lambda: fl.freeze(model, "backbone", optimizer=optimizer), model, FreezeError, "LBFGS"
    )
    assert "[p for p in model.parameters() if p.requires_grad]" in message
    part = fl.freeze(model, "backbone")
    with pytest.raises(FreezeError, match="LBFGS writes to every parameter"):
        optimizer.step(lambda: ZOO["mlp_bn1d"].loss(model, ZOO["mlp_bn1d"].batch()))
    assert part.ok
    torch.optim.LBFGS(model.head.parameters()).step(
        lambda: ZOO["mlp_bn1d"].loss(model, ZOO["mlp_bn1d"].batch())
    )
    assert part.ok


def test_a_wrapped_optimizer() -> None:
    from accelerate import Accelerator

    model = mlp()
    prepared = Accelerator(cpu=True).prepare(adam(model))
    if isinstance(prepared, torch.optim.Optimizer):
        fl.freeze(model, "backbone", optimizer=prepared)
        return
    refused(
        lambda: fl.freeze(model, "backbone", optimizer=prepared),
        model,
        TypeError,
        "pass what it wraps: optimizer.optimizer",
    )


# --- wrapped already -----------------------------------------------------------------------------


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_wrapped_in_ddp_already() -> None:
    model = mlp()
    wrapped = DistributedDataParallel(model)
    message = refused(
        lambda: fl.freeze(wrapped, "backbone"), model, FreezeError, "is wrapped in Distributed"
    )
    assert "backbone.0.weight" in message
    assert "fl.freeze(model, ...); DistributedDataParallel(model)" in message
    part = fl.freeze(wrapped, "backbone", params=False)
    wrapped.train()(torch.randn(8, 12))
    assert part.ok
    assert fl.parts(wrapped) == fl.parts(model) == [part]


@pytest.mark.usefixtures("one_rank")
def test_flags_first_then_ddp_then_flagged() -> None:
    model = ZOO["mlp_bn1d"].build()
    model.backbone.requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    part = fl.freeze(wrapped, fl.FLAGGED)
    ZOO["mlp_bn1d"].loss(wrapped.train(), ZOO["mlp_bn1d"].batch()).backward()
    torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9).step()
    assert part.ok
    assert model.head.weight.grad is not None


def test_compiled_already() -> None:
    model = ZOO["mlp_bn1d"].build()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(8, 12)
    compiled.train()(x)
    part = fl.freeze(compiled, "backbone")
    compiled.train()(x)
    assert part.ok
    assert set(part.modules) == {"backbone", *(f"backbone.{i}" for i in range(5))}
    assert not model.backbone[1].training


# --- twice, never, gone --------------------------------------------------------------------------


def test_freezing_twice_gives_two_parts() -> None:
    model = mlp()
    before = everything(model)
    first, second = fl.freeze(model, "backbone"), fl.freeze(model, "backbone")
    first.undo()
    model.train()
    assert not model.backbone[1].training
    assert not model.backbone[0].weight.requires_grad
    assert second.ok
    second.undo()
    model.backbone[4].eval()
    after = everything(model)
    assert [t[:2] for t in after["tensors"]] == [t[:2] for t in before["tensors"]]
    assert after["tensors"] == before["tensors"]


def test_unfreezing_what_is_not_frozen() -> None:
    model = mlp().requires_grad_(True)
    before = everything(model)
    with pytest.warns(FrostlineWarning, match=r'nothing in "head" of Sequential was frozen'):
        assert fl.unfreeze(model, "head") == []
    assert everything(model) == before


def test_undo_twice() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    part.undo()
    before = everything(model)
    part.undo()
    assert everything(model) == before


def test_a_part_whose_model_is_gone() -> None:
    part = fl.freeze(mlp(), "backbone")
    gc.collect()
    with pytest.raises(ModelGone, match=r'\("backbone"\) is gone; keep a reference to the model'):
        part.changes()
    assert "its model is gone" in str(part)
    part.undo()
    # An optimizer of another model is not disturbed by it.
    torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1).step()


# --- norms that need a word ----------------------------------------------------------------------


def test_a_norm_that_was_never_trained() -> None:
    model = ZOO["mlp_bn1d"].make()
    with pytest.warns(FrostlineWarning, match=r"backbone\.1 and 1 more: never trained") as caught:
        part = fl.freeze(model, "backbone")
    assert caught[0].filename == __file__
    assert "Load weights first, then part.seal()" in str(caught[0].message)
    assert "never trained" in str(part)


@pytest.mark.parametrize("stats", ["batch", "update"])
def test_a_fresh_norm_that_is_not_held_needs_no_word(stats: Any) -> None:
    part = fl.freeze(ZOO["mlp_bn1d"].make(), "backbone", stats=stats)
    assert part is not None


def test_a_norm_with_one_step_of_life_needs_no_word() -> None:
    model = ZOO["mlp_bn1d"].make()
    model.train()(torch.randn(8, 12))
    assert fl.freeze(model, "backbone").ok


def test_a_norm_without_statistics() -> None:
    model = mlp()
    model.backbone[1] = nn.BatchNorm1d(16, track_running_stats=False)
    with pytest.warns(FrostlineWarning, match=r"backbone\.1: without running statistics"):
        part = fl.freeze(model, "backbone")
    assert "the other samples" in " ".join(str(part).split())
    # It says the truth: the output for one sample depends on the others.
    x = torch.randn(4, 12)
    model.eval()
    assert not torch.equal(model(x)[:2], model(x[:2]))


def test_group_norm_needs_no_word() -> None:
    model = mlp()
    model.backbone[1] = nn.GroupNorm(2, 16)
    assert fl.freeze(model, "backbone").ok


def test_batch_statistics_of_an_unknown_norm() -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(16))
            self.register_buffer("running_var", torch.ones(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.running_mean.lerp_(x.detach().mean(0), 0.1)
            return x - self.running_mean

    model = mlp()
    model.backbone[1] = OwnNorm()
    message = refused(
        lambda: fl.freeze(model, "backbone", stats="batch"),
        model,
        FreezeError,
        "backbone.1 (OwnNorm) cannot be frozen with stats=",
    )
    assert 'Use stats="hold" or "update"' in message
    part = fl.freeze(model, "backbone")
    model.train()(torch.randn(8, 12))
    assert part.ok


def test_a_replaced_module_is_named_at_the_next_training_mode() -> None:
    model = mlp()
    fl.freeze(model, "backbone")
    model.backbone[4] = nn.BatchNorm1d(16)
    with pytest.raises(FrozenStateChanged, match=r"backbone\.4 was replaced after freezing") as e:
        model.train()
    assert "fl.unfreeze(model, 'backbone.4')" in str(e.value)
    assert [(c.name, c.kind) for c in e.value.changes] == [("backbone.4", "replaced")]
    with pytest.raises(FrozenStateChanged, match=r"backbone\.4 was replaced"):
        torch.optim.SGD(model.head.parameters(), lr=0.1).step()
