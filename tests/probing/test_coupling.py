"""``coupling`` names who couples samples, and says what accumulation does to the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

import frostline as fl
from frostline.probing import coupling
from tests.everything import everything
from tests.probing import models
from tests.probing.cases import CASES, accumulation_error, square
from tests.probing.models import WIDTH, mlp, sequences, vectors
from tests.zoo import BREADTH, ZOO, fresh, seeded


def named(model: nn.Module, batch: object) -> dict[str, bool]:
    return {each.name: each.joinable for each in coupling(model, batch).couplers}


@pytest.mark.parametrize("name", CASES)
def test_couplers_are_named_and_ok_is_what_accumulation_does(name: str) -> None:
    case = CASES[name]
    found = coupling(case.make(), case.batch(), compute_loss=square)
    assert {each.name: each.joinable for each in found.couplers} == case.couplers
    assert found.exact is all(case.couplers.values())
    if name != "two samples":  # a microbatch of one would be no batch for the norm
        error = accumulation_error(case.make, square, case.batch().double())
        assert found.ok is (error < 1e-12)
        assert found.ok or error > 1e-6


def tracking_norms(model: nn.Module) -> set[str]:
    return {
        name for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.training
    }  # fmt: skip


@pytest.mark.parametrize("name", ["two_branches", "conv_bn3d", "instance_norm", "transformer"])
def test_batch_norms_of_the_zoo_couple_and_nothing_else(name: str) -> None:
    model, batch = fresh(ZOO[name]), ZOO[name].batch()
    assert named(model, batch) == dict.fromkeys(tracking_norms(model), True)
    assert named(model.eval(), batch) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ZOO, *BREADTH])
def test_the_whole_zoo(name: str) -> None:
    entry = {**ZOO, **BREADTH}[name]
    model, batch = fresh(entry), entry.batch()
    before = everything(model)
    found = coupling(model, batch, compute_loss=entry.loss)
    assert everything(model) == before
    if name == "clip":  # images are compared with all texts
        assert [each.name for each in found.couplers] == ["", "compute_loss"]
        return
    assert set(found.names) == tracking_norms(model)
    assert found.exact
    assert found.reduction == "mean"
    assert coupling(model.eval(), batch, compute_loss=entry.loss).ok


def test_how_often_and_how_much() -> None:
    (coupler,) = coupling(models.twice_the_same(), vectors()).couplers
    assert coupler.calls == (1, 2)
    assert coupler.kind == "BatchNorm1d"
    assert coupler.what == "its output"
    assert 0.1 < coupler.effect < 10


def test_the_effect_is_that_of_replacing_half_of_the_samples() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean(0)

    x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [8.0], [0.0], [0.0], [8.0]])
    (coupler,) = coupling(Mean(), x).couplers
    # Of 1, 2, 3, 4 the first and the last become 8 and 8: the mean 2.5 becomes 5.25.
    base = x[:4] + 2.5
    assert coupler.effect == pytest.approx(2.75 / base.square().mean().sqrt().item())


def test_code_before_a_module_is_told_by_that_module() -> None:
    by_hand, norm = coupling(models.HandWritten(), models.images()).couplers
    assert (by_hand.name, by_hand.what) == ("", "input of norm")
    assert (norm.name, norm.what) == ("norm", "its output")


def test_a_norm_that_is_called_below_the_function_cannot_be_joined() -> None:
    class Below(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            own = (self.weight, self.bias, self.running_mean, self.running_var)
            return torch.native_batch_norm(x, *own, True, 0.1, 1e-5)[0]

    assert named(mlp(Below(WIDTH)), vectors()) == {"1": False}


def test_a_sample_that_is_seen_but_does_not_see_is_found() -> None:
    assert named(mlp(models.Cumulated()), vectors(2)) == {"1": False}


@pytest.mark.parametrize("length", [4, 7, 8])
def test_samples_may_stand_in_any_dimension(length: int) -> None:
    """Four samples of length 4: sizes alone do not tell which dimension is which."""
    net, norm = nn.GRU(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.norm = net, norm

        def forward(self, x: Tensor) -> Tensor:
            steps = self.net(x.transpose(0, 1))[0]  # [length, samples, channels]
            return self.norm(steps.permute(1, 2, 0)).permute(2, 0, 1)

    x = torch.randn(4, length, WIDTH)
    assert named(Steps(), x) == {"norm": True}
    norm.eval()
    assert named(Steps(), x) == {}


def test_what_one_forward_leaves_for_the_next_couples_microbatches() -> None:
    class Queue(nn.Module):
        """Adds the mean of the batch before."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            before = self.seen[-1].mean(0) if self.seen else 0
            self.seen.append(x.detach())
            return x + before

    found = coupling(mlp(Queue()), vectors())
    (coupler,) = found.couplers
    assert (coupler.name, coupler.what, coupler.joinable) == ("1", "state it keeps", False)
    assert "uses what the forward before has written" in str(found)


@pytest.mark.parametrize("spectral_norm", [parametrizations.spectral_norm, utils.spectral_norm])
def test_spectral_norm_iterates_with_every_microbatch(spectral_norm: Any) -> None:
    with seeded(0):
        model = nn.Sequential(spectral_norm(nn.Linear(WIDTH, 5)))
        for vector in model.buffers():
            vector.copy_(nn.functional.normalize(torch.randn_like(vector), dim=0))
    found = coupling(model, vectors())
    assert [each.what for each in found.couplers] == ["state it keeps"]
    assert found.exact
    assert coupling(model.eval(), vectors()).ok


def test_a_detector_of_changing_shapes() -> None:
    model, batch = models.Detector(), models.images()
    assert named(model, batch) == {"backbone.1": True}
    found = coupling(model.eval(), batch, compute_loss=lambda model, x: model(x)["loss"])
    assert found.ok


# With few tokens they are sometimes told by their shapes alone, or by their rows alone.
@pytest.mark.parametrize("seed", [0, 1, 2, 66, 81])
def test_experts_that_sort_tokens_raise_no_false_alarm(seed: int) -> None:
    with seeded(seed):
        x = torch.randn(8, 3, WIDTH)
        for experts in (models.Experts(None, length_first=True), models.SortedExperts()):
            assert named(models.WithExperts(experts), x) == {}


def test_a_norm_among_experts_is_seen_from_the_call_around_them() -> None:
    experts = models.Experts(None, length_first=True)
    for expert in experts.experts:
        expert.append(nn.BatchNorm1d(WIDTH))
    found = coupling(models.WithExperts(experts), sequences())
    assert not found.ok
    assert all(name.startswith("experts") for name in found.names)


def test_padding_that_is_left_out_of_sums_is_rounding() -> None:
    """Nested tensors of the fast path have shapes by content, so sums have another order."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval().requires_grad_(False)
    mask = torch.arange(7) >= torch.tensor([3, 4, 5, 6, 3, 4, 7, 7])[:, None]
    batch = {"src": torch.randn(8, 7, 8), "src_key_padding_mask": mask}
    assert named(model, batch) == {}


@pytest.mark.slow  # loads the compiler
def test_compiled_models() -> None:
    model = mlp(nn.BatchNorm1d(WIDTH))
    assert named(torch.compile(model), vectors()) == {"1": True}
    model[1].compile()
    assert named(model, vectors()) == {"1": True}


def test_wrappers_and_precisions() -> None:
    model = mlp(nn.BatchNorm1d(WIDTH))
    assert named(nn.DataParallel(model), vectors()) == {"1": True}
    with torch.autocast("cpu", torch.bfloat16):
        assert named(model, vectors()) == {"1": True}
    with torch.inference_mode():
        assert named(model, vectors()) == {"1": True}
    assert named(model.bfloat16(), vectors().bfloat16()) == {"1": True}
    assert named(model.eval(), vectors().bfloat16()) == {}


def test_microbatches_of_one_sample_in_a_list() -> None:
    window = [(sample[None], torch.zeros(1)) for sample in vectors()]
    found = coupling(mlp(nn.BatchNorm1d(WIDTH)), window)
    assert found.names == ["1"]
    assert found.samples == 4


def test_a_batch_of_zeros_is_stirred() -> None:
    """A dummy batch moves nothing, and must not pass for an uncoupled one."""
    assert named(mlp(nn.BatchNorm1d(WIDTH)), torch.zeros(8, WIDTH)) == {"1": True}


def test_holding_the_norms_as_it_says_is_enough() -> None:
    entry = ZOO["two_branches"]
    images, labels = entry.batch()

    def held() -> nn.Module:
        model = fresh(entry)
        fl.freeze(model, coupling(model, (images, labels)).names, params=False)
        return model.train()

    assert coupling(held(), (images, labels), compute_loss=entry.loss).ok
    assert accumulation_error(held, entry.loss, (images.double(), labels)) < 1e-12
    assert accumulation_error(lambda: fresh(entry), entry.loss, (images.double(), labels)) > 1e-3


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_few_forwards_of_few_samples(count: int) -> None:
    sizes: list[int] = []

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x

    few = 4 if count >= 4 else 2
    coupling(mlp(Counts()), vectors(count))
    assert sorted(sizes) == [few] * 5 + [2 * few]
    sizes.clear()
    coupling(nn.Sequential(Counts(), nn.BatchNorm1d(WIDTH)), vectors(count), compute_loss=square)
    assert sorted(sizes) == [few] * 10 + [2 * few] * 2


def test_random_numbers_of_one_module_do_not_depend_on_those_of_another() -> None:
    class Greedy(nn.Module):
        """It draws as many numbers as its input says, and uses none."""

        def forward(self, x: Tensor) -> Tensor:
            torch.rand(int(x.abs().sum() * 10))
            return x

    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5)

    with seeded(0):
        assert named(nn.Sequential(Greedy(), nn.Linear(WIDTH, 5), Drops()), vectors()) == {}
