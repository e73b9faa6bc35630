"""Whether a loss is a sum over samples, and which: beyond what the model's modules couple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.probing import coupling
from frostline.probing.unjoinable import reduction
from tests.probing.cases import accumulation_error
from tests.probing.models import WIDTH, mlp, vectors

Loss = Callable[[nn.Module, Any], Tensor]
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 0, 1])


def batch() -> tuple[Tensor, Tensor]:
    return vectors(), LABELS


def plain() -> nn.Module:
    return mlp(nn.Identity())


def cross_entropy(**how: Any) -> Loss:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        scores = model(batch[0])
        weight = how.get("weight")
        cast = {} if weight is None else {"weight": weight.to(scores.dtype)}
        return F.cross_entropy(scores, batch[1], **{**how, **cast})

    return loss


def with_decay(model: nn.Module, batch: Any) -> Tensor:
    decay = sum(p.square().sum() for p in model.parameters())
    return cross_entropy()(model, batch) + 0.01 * decay


def two_runs(model: nn.Module, batch: Any) -> Tensor:
    return F.softplus(model(batch[0])).mean() + F.softplus(-model(2 * batch[0])).mean()


def binary(model: nn.Module, batch: Any) -> Tensor:
    """Its targets must stay between 0 and 1."""
    scores = model(batch[0])
    return F.binary_cross_entropy(scores[:, 0].sigmoid(), (batch[1] > 1).to(scores.dtype))


def gradient_penalty(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0].detach().clone().requires_grad_()
    scores = model(x)
    (grad,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return scores.mean() + (grad.norm(dim=1) - 1).square().mean()


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    """InfoNCE (van den Oord et al. 2018)."""
    one, other = (F.normalize(model(x), dim=1) for x in (batch[0], batch[0].flip(1)))
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def barlow_twins(model: nn.Module, batch: Any) -> Tensor:
    """Zbontar et al. 2021."""
    one, other = (model(x) for x in (batch[0], batch[0].flip(1)))
    one, other = ((z - z.mean(0)) / z.std(0) for z in (one, other))
    return (one.T @ other / len(one) - torch.eye(one.shape[1]).to(one)).square().sum()


def hardest(model: nn.Module, batch: Any) -> Tensor:
    scores = model(batch[0])
    return (scores[:, None] - scores[None]).square().sum(-1).amax(1).mean()


def root(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).square().mean().sqrt()


ADDITIVE = {
    "mean": (cross_entropy(), "mean"),
    "sum": (cross_entropy(reduction="sum"), "sum"),
    "with weight decay": (with_decay, "mean"),
    "two runs of the model": (two_runs, "mean"),
    "targets in a range": (binary, "mean"),
    "gradient penalty": (gradient_penalty, "mean"),
    "its own dropout": (lambda model, b: F.dropout(model(b[0])).square().mean(), "unknown"),
}
COUPLED: dict[str, Loss] = {
    "contrastive": contrastive,
    "barlow twins": barlow_twins,
    "hardest pair": hardest,
    "root of a mean": root,
    "class weights": cross_entropy(weight=torch.arange(1.0, 6)),
    "ignored labels": cross_entropy(ignore_index=0),
}


@pytest.mark.parametrize("name", ADDITIVE)
def test_sums_and_means_over_samples(name: str) -> None:
    loss, kind = ADDITIVE[name]
    found = coupling(plain(), batch(), compute_loss=loss)
    assert found.ok
    assert found.reduction == reduction(plain(), loss, [batch()]) == kind
    norm = coupling(mlp(nn.BatchNorm1d(WIDTH)), batch(), compute_loss=loss)
    assert norm.exact
    assert norm.names == ["1"]
    assert norm.reduction in (kind, "unknown")


@pytest.mark.parametrize("name", COUPLED)
def test_losses_that_are_none(name: str) -> None:
    found = coupling(plain(), batch(), compute_loss=COUPLED[name])
    assert [(each.name, each.joinable) for each in found.couplers] == [("compute_loss", False)]
    assert not found.exact
    behind = coupling(mlp(nn.BatchNorm1d(WIDTH)), batch(), compute_loss=COUPLED[name])
    assert [each.name for each in behind.couplers] == ["1", "compute_loss"]
    assert [each.joinable for each in behind.couplers] == [True, False]


# Not those that are random, or that weighting by samples is not for.
@pytest.mark.parametrize(
    "name", [name for name in [*ADDITIVE, *COUPLED] if name not in ("its own dropout", "sum")]
)
def test_it_is_what_accumulation_does_to_the_gradients(name: str) -> None:
    loss = ADDITIVE[name][0] if name in ADDITIVE else COUPLED[name]
    error = accumulation_error(plain, loss, (vectors().double(), LABELS))
    assert (error < 1e-12) is (name in ADDITIVE)
    assert name in ADDITIVE or error > 1e-4


def test_a_loss_whose_modules_mix_before_the_model() -> None:
    """Mixup with the neighbour: the model gets inputs that are no samples any more."""

    def mixup(model: nn.Module, batch: Any) -> Tensor:
        x = 0.7 * batch[0] + 0.3 * batch[0].roll(1, 0)
        return model(x).square().mean()

    (coupler,) = coupling(plain(), batch(), compute_loss=mixup).couplers
    assert (coupler.name, coupler.what) == ("compute_loss", "input of the model")


def test_a_teacher_in_training_mode_couples_through_the_loss() -> None:
    teacher = mlp(nn.BatchNorm1d(WIDTH))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}

    def distil(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            target = teacher(batch[0])
        return F.mse_loss(model(batch[0]), target)

    found = coupling(plain(), batch(), compute_loss=distil)
    assert [(each.name, each.joinable) for each in found.couplers] == [("compute_loss", True)]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    teacher.eval()
    assert coupling(plain(), batch(), compute_loss=distil).ok


def test_a_teacher_is_found_wherever_the_loss_has_it() -> None:
    from functools import partial

    class Trainer:
        def __init__(self) -> None:
            self.teachers = [mlp(nn.BatchNorm1d(WIDTH))]

        def loss(self, model: nn.Module, batch: Any, teacher: nn.Module | None = None) -> Tensor:
            return F.mse_loss(model(batch[0]), (teacher or self.teachers[0])(batch[0]))

    trainer, bound = Trainer(), mlp(nn.BatchNorm1d(WIDTH))
    for loss, teacher in (
        (partial(trainer.loss, teacher=bound), bound),
        (lambda model, batch, teacher=bound: trainer.loss(model, batch, teacher), bound),
    ):
        before = teacher[1].running_mean.clone()
        coupling(plain(), batch(), compute_loss=loss)
        assert torch.equal(teacher[1].running_mean, before)


def test_an_output_without_samples_is_not_decided_without_a_loss() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(0).exp()

    model = nn.Sequential(nn.Linear(WIDTH, 5), Mean())
    found = coupling(model, vectors())
    assert not found.ok
    assert found.couplers == ()
    assert "is no sum over them" in found.undecided[0]
    judged = coupling(model, vectors(), compute_loss=lambda model, x: model(x).sum())
    assert [each.name for each in judged.couplers] == ["compute_loss"]
    assert not judged.undecided
