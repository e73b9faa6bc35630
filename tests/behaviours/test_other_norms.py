"""Modules of timm, transformers and torch.ao: what is said of them is what they do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic import qat
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    get_default_qat_qconfig,
)

from frostline._state import same_bits
from frostline.behaviours import behaviour, norms, register
from frostline.behaviours.doing import Behaviour, Statistics
from tests.zoo import live

IMAGES = (4, 6, 3, 3)


def images() -> Tensor:
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(5)) * 1.4 + 0.3


class NeverMoves(nn.BatchNorm2d):
    """As people write it to freeze: a BatchNorm whose forward ignores the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False
        )


class Louder(nn.BatchNorm2d):
    """A near miss: a forward of its own that calls the old one."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def frozen_batch_norm() -> nn.Module:
    """torchvision's class, as transformers ships it."""
    from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

    return DetrFrozenBatchNorm2d(6)


class FrozenBatchNormOfDetectron(nn.Module):
    """The form of detectron2: F.batch_norm in eval mode, buffers only, no counter."""

    def __init__(self) -> None:
        super().__init__()
        for name, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((6,), fill))
        self.register_buffer("running_var", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False
        )


def of_timm(name: str, *arguments: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm.layers

        return getattr(timm.layers, name)(*arguments)  # type: ignore[no-any-return]

    return make


def of_transformers(module: str, name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import importlib

        found = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        return getattr(found, name)(3)  # type: ignore[no-any-return]

    return make


# Module, and what it normalises with in training and in eval mode.
NORMS: dict[str, tuple[Callable[[], nn.Module], Statistics | None, Statistics | None]] = {
    "DetrFrozenBatchNorm2d": (frozen_batch_norm, "running", "running"),
    "FrozenBatchNorm2d of detectron2": (FrozenBatchNormOfDetectron, "running", "running"),
    "a BatchNorm that ignores the mode": (lambda: NeverMoves(6), "running", "running"),
    "a BatchNorm that does more": (lambda: Louder(6), "batch", "running"),
    "LazyBatchNorm2d": (nn.LazyBatchNorm2d, "batch", "running"),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(6), "batch", "running"),
    "timm BatchNormAct2d": (of_timm("BatchNormAct2d", 6), "batch", "running"),
    "timm FrozenBatchNormAct2d": (of_timm("FrozenBatchNormAct2d", 6), "running", "running"),
    "timm GroupNormAct": (of_timm("GroupNormAct", 6, 2), "group", "group"),
    "timm GroupNorm1": (of_timm("GroupNorm1", 6), "group", "group"),
    "timm LayerNorm2d": (of_timm("LayerNorm2d", 6), "sample", "sample"),
    "timm RmsNorm": (of_timm("RmsNorm", 3), "sample", "sample"),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3), "neighbours", "neighbours"),
    "LlamaRMSNorm": (of_transformers("llama", "LlamaRMSNorm"), "sample", "sample"),
    "T5LayerNorm": (of_transformers("t5", "T5LayerNorm"), "sample", "sample"),
    "Qwen2RMSNorm": (of_transformers("qwen2", "Qwen2RMSNorm"), "sample", "sample"),
}


def run(module: nn.Module, training: bool) -> tuple[Behaviour, set[str], Tensor]:
    """What is said of it, the names of the tensors that a forward changed, and its output."""
    said = behaviour(module.train(training))
    assert said is not None
    before = {n: t.detach().clone() for n, t in module.state_dict().items()}
    with torch.no_grad():
        output = module(images())
    after = module.state_dict()
    return said, {n for n in before if not same_bits(after[n], before[n])}, output


def couples_samples(module: nn.Module, training: bool) -> bool:
    """Whether the first sample's output depends on the others."""
    x = images()
    other = torch.cat([x[:1], x[1:] + 1])
    state = {n: t.clone() for n, t in module.state_dict().items()}
    with torch.no_grad():
        outputs = []
        for inputs in (x, other):
            outputs.append(module.train(training)(inputs)[0])
            module.load_state_dict(state)
    return not torch.allclose(*outputs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_others(name: str, training: bool) -> None:
    make, in_training, in_eval = NORMS[name]
    module = make()
    with torch.no_grad():
        module(images())  # lazy ones become what they are
    live(module)
    said, changed, _ = run(module, training)
    assert said.kind == "norm"
    assert said.now.statistics == (in_training if training else in_eval)
    assert {write.tensor for write in said.now.writes} == changed
    assert couples_samples(module, training) is (said.now.statistics == "batch")


def test_a_lazy_norm_is_told_before_it_knows_its_size() -> None:
    said = behaviour(nn.LazyBatchNorm2d())
    assert said is not None
    assert [write.tensor for write in said.now.writes] == [
        "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["EvoNorm2dB0", "SplitBatchNorm2d", "FilterResponseNormTlu2d"])
def test_what_an_unknown_norm_writes_is_read_from_its_code(name: str) -> None:
    module = live(of_timm(name, 6)())
    said, changed, _ = run(module, True) if behaviour(module) else (None, set(), None)
    written = {write.tensor for write in said.now.writes} if said is not None else set()
    assert name != "FilterResponseNormTlu2d" or (said is not None and said.kind == "norm")
    if name == "SplitBatchNorm2d":  # the norms inside of it write, each its own
        inner = behaviour(module.aux_bn[0])
        assert inner is not None
        assert len(inner.now.writes) == 3
        written |= {f"aux_bn.0.{write.tensor}" for write in inner.now.writes}
    assert written == changed


@pytest.mark.parametrize(
    ("module", "name"),
    [("olmo", "OlmoLayerNorm"), ("switch_transformers", "SwitchTransformersLayerNorm")],
)
def test_a_norm_that_nobody_knows_is_listed_by_its_name(module: str, name: str) -> None:
    norm = of_transformers(module, name)()
    said, changed, in_training = run(norm, True)
    _, also, in_eval = run(norm, False)
    assert (said.kind, said.sure, said.now.writes) == ("norm", False, ())
    assert said.same_in_both
    assert torch.equal(in_training, in_eval)
    assert changed == also == set()


def test_a_block_with_norm_in_its_name_is_no_norm() -> None:
    class PreNormBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

    assert behaviour(PreNormBlock()) is None


def test_a_norm_of_quantisation_aware_training() -> None:
    with torch.no_grad():
        module = qat.ConvBn2d(6, 4, 1, qconfig=get_default_qat_qconfig("fbgemm"))
    live(module)
    _, changed, _ = run(module, True)
    said = {
        f"{name}.{write.tensor}" if name else write.tensor
        for name, part in module.named_modules()
        if (doing := behaviour(part)) is not None
        for write in doing.now.writes
    }
    assert changed <= said
    assert {n for n in said if n.startswith("bn.")} == {n for n in changed if n.startswith("bn.")}


OBSERVERS: dict[str, Callable[[], nn.Module]] = {
    "MinMaxObserver": MinMaxObserver,
    "MovingAverageMinMaxObserver": MovingAverageMinMaxObserver,
    "per channel": lambda: MovingAveragePerChannelMinMaxObserver(ch_axis=1),
    "HistogramObserver": HistogramObserver,
    "FakeQuantize": FakeQuantize,
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_watch_in_every_mode(name: str, training: bool) -> None:
    said, changed, _ = run(OBSERVERS[name](), training)
    assert said.same_in_both
    assert said.kind == "writer"
    own = {write.tensor for write in said.now.writes}
    assert own <= changed
    assert {n for n in changed if "." not in n} == own


def test_an_observer_that_is_switched_off_writes_nothing() -> None:
    module = FakeQuantize()
    module(images())
    module.disable_observer()
    said = behaviour(module)
    assert said is None or said.now.writes == ()


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "Dropout": lambda: nn.Dropout(0.4),
    "Dropout2d": lambda: nn.Dropout2d(0.4),
    "AlphaDropout": lambda: nn.AlphaDropout(0.4),
    "timm DropPath": of_timm("DropPath", 0.4),
    "RReLU": nn.RReLU,
}


@pytest.mark.parametrize("name", RANDOM)
def test_modules_that_draw_random_numbers(name: str) -> None:
    module = RANDOM[name]()
    for training in (True, False):
        said = behaviour(module.train(training))
        assert said is not None
        torch.manual_seed(0)
        state = torch.get_rng_state()
        module(images())
        assert said.now.random is not torch.equal(state, torch.get_rng_state())


def test_third_parties_register_their_own() -> None:
    class Centred(nn.Module):
        """Subtracts the mean of the batch and keeps none."""

        eps = 1e-5

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean((0, 2, 3), keepdim=True)

    assert behaviour(Centred()) is None
    register(Centred, norms.batch_norm)
    said = behaviour(Centred())
    assert said is not None
    assert said.now.statistics == "batch"
    with pytest.raises(ValueError, match="known already"):
        register(Centred, norms.layer_norm)
