"""How a step is run: losses, closures, counts, gradients that arrive, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import frostline as fl
from frostline.auditing.measuring import measure
from frostline.errors import BatchError
from tests.auditing.measuring.steps import X, changed, names, net
from tests.auditing.measuring.surroundings import surroundings
from tests.everything import forget_other_tests
from tests.zoo import ZOO, fresh


@pytest.fixture(autouse=True, scope="module")
def _alone() -> None:
    forget_other_tests()


def test_a_dict_and_a_loss_of_the_model() -> None:
    entry = ZOO["bert"]
    model = fresh(entry)
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    step = measure(model, optimizer, entry.batch(), None, train=False)
    assert names(model, step.changed) == {"classifier.weight", "classifier.bias"}
    assert step.loss == "the loss of model(**batch)"


def test_a_teacher_beside() -> None:
    model, teacher = net(), net()
    before = surroundings([model, teacher], None, X)

    def distil(model: nn.Module, batch: Tensor) -> Tensor:
        return F.mse_loss(model(batch), teacher.train()(batch).detach())

    step = measure(model, None, X, distil, train=False)
    assert len(step.changed) == 3
    assert surroundings([model, teacher], None, X) == before


def _adversarial(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean() - model(batch.flip(0)).mean()


def test_norms_are_counted() -> None:
    model = net()
    assert measure(model, None, X, None, train=False).calls == {id(model[1]): 1}
    assert measure(model, None, X, _adversarial, train=False).calls == {id(model[1]): 2}
    assert measure(model.eval(), None, X, _adversarial, train=False).calls == {}
    fl.freeze(model, "1")
    assert measure(model, None, X, None, train=True).calls == {}


def test_a_loss_that_needs_no_gradient() -> None:
    model = net().requires_grad_(False)
    step = measure(model, None, X, None, train=False)
    assert step.reached == frozenset()
    assert not step.raised
    assert len(step.changed) == 3


def test_a_loop_ends_at_the_backward_of_a_loss_that_needs_no_gradient() -> None:
    model = net().requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step = measure(model, torch.optim.SGD(model.parameters(), lr=0.1), X, None, train=False)
    assert "does not require grad" in step.raised
    assert len(step.changed) == 3  # by the forward; nothing was stepped


def test_an_optimizer_that_asks_for_a_closure() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    step = measure(model, optimizer, X, lambda model, x: model(x).square().mean(), train=False)
    assert step.reached == {id(p) for p in model.parameters()}
    assert id(model[2].weight) in step.changed
    assert step.calls[id(model[1])] == 3
    assert not step.raised


def test_an_optimizer_in_the_backward() -> None:
    model = net().eval()
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def hook(p: Tensor, optimizer: Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(hook)
    step = measure(model, None, X, None, train=False)
    assert len(step.changed) == len(list(model.parameters()))
    assert step.reached == step.changed


class Skipping(nn.Module):
    """Half of its layers are left out at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(()) < 0.5
        return self.layers[2](self.layers[0](x) if kept else self.layers[1](x))


def test_layers_left_out_at_random_are_reached() -> None:
    model = Skipping()
    reached = []
    for seed in range(4):
        torch.manual_seed(seed)
        step = measure(model, None, X, None, train=False)
        reached.append(len(step.reached or ()))
    assert reached == [6, 6, 6, 6]


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.dropout = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.used(x))


def test_a_layer_that_is_not_used_is_not_reached() -> None:
    model = Unused()
    step = measure(model, None, X, None, train=False)
    assert names(model, step.reached) == {"used.weight", "used.bias"}


# --- errors ---------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit() -> None:
    model = net()
    before = surroundings([model], None, X)
    with pytest.raises(BatchError, match=r"model\(batch\) raised RuntimeError"):
        measure(model, None, torch.zeros(2, 9), None, train=False)
    with pytest.raises(BatchError, match=r"compute_loss\(model, batch\) raised KeyError"):
        measure(model, None, X, lambda model, batch: {}["loss"], train=False)
    assert surroundings([model], None, X) == before


def test_one_value_per_channel_is_told() -> None:
    model = net()
    before = surroundings([model], None, X)
    step = measure(model, None, X[:1], None, train=False)
    assert step.raised.startswith("the forward raised ValueError in '1': Expected more than 1")
    assert names(model, step.changed) == {"1.num_batches_tracked"}
    assert surroundings([model], None, X) == before


class Asks(nn.Module):
    """Needs targets in training mode, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("targets should not be None in training mode")
        return self.layer(x)


def test_a_forward_that_only_fails_after_train_is_told() -> None:
    model = Asks()
    with pytest.raises(BatchError, match="targets should not be None"):
        measure(model, None, X, None, train=False)
    model.eval()
    assert not measure(model, None, X, None, train=False).raised
    step = measure(model, None, X, None, train=True)
    assert step.raised == (
        "the forward raised ValueError in '': targets should not be None in training mode"
    )


class Spoils(nn.Module):
    """Writes to what the backward needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).exp()
        z = y.square().sum()
        with torch.no_grad():
            y.add_(1)
        return z


def test_an_error_in_the_backward_is_told() -> None:
    model = Spoils()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = surroundings([model], optimizer, X)
    step = measure(model, optimizer, X, None, train=False)
    assert step.raised.startswith("backward raised RuntimeError: one of the variables needed")
    assert step.changed == frozenset()
    assert surroundings([model], optimizer, X) == before


class Demands(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step()
        raise RuntimeError("every parameter needs a gradient")


def test_an_error_in_the_step_is_told() -> None:
    model = net().eval()
    optimizer = Demands(model.parameters(), lr=0.1)
    before = surroundings([model], optimizer, X)
    step = measure(model, optimizer, X, None, train=False)
    assert step.raised == "optimizer.step() raised RuntimeError: every parameter needs a gradient"
    assert len(step.changed) == 6
    assert surroundings([model], optimizer, X) == before


def test_lbfgs_over_what_is_held_is_refused_as_in_the_real_step() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = torch.optim.LBFGS(model.parameters())
    step = measure(model, optimizer, X, None, train=False)
    assert step.raised.startswith("optimizer.step() raised FreezeError: LBFGS writes")


class Watchful(nn.Module):
    """No class that anybody knows: its first forward under a hold is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return self.layer(x)


def test_what_a_hold_refuses_does_not_change() -> None:
    model = nn.Sequential(Watchful(), nn.Linear(4, 1))
    assert "0.seen" in changed(model)
    fl.freeze(model, "0")
    step = measure(model, None, X, None, train=False)
    assert step.changed == frozenset()
    assert "FrozenStateChanged" in step.raised
    assert "0.seen" in step.raised


def test_an_interrupt_passes_and_all_is_put_back() -> None:
    model = net()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        model(batch)
        raise KeyboardInterrupt

    before = surroundings([model], None, X)
    with pytest.raises(KeyboardInterrupt):
        measure(model, None, X, loss, train=False)
    assert surroundings([model], None, X) == before
