"""The state that an optimizer will have, against the state that it has after a real step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from frostline.summaries import summary
from tests.everything import everything
from tests.summaries import measuring

Make = Callable[[Iterable[Tensor]], Optimizer]

MAKES: dict[str, Make] = {
    "Adadelta": torch.optim.Adadelta,
    "Adafactor": torch.optim.Adafactor,
    "Adagrad": torch.optim.Adagrad,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), foreach=False),
    "Adamax": torch.optim.Adamax,
    "ASGD": torch.optim.ASGD,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": torch.optim.RMSprop,
    "RMSprop centered": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
    "Rprop": torch.optim.Rprop,
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def step(model: nn.Module, optimizer: Optimizer) -> None:
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", MAKES)
def test_every_optimizer_of_torch(name: str) -> None:
    model = net()
    optimizer = MAKES[name](model.parameters())
    before = everything(model, optimizer)
    found = summary(model, optimizer=optimizer)
    assert everything(model, optimizer) == before
    step(model, optimizer)
    assert found.optimizer_bytes == measuring.state(optimizer)
    after = summary(model, optimizer=optimizer)
    assert after.optimizer_bytes == found.optimizer_bytes
    assert after.optimizer_how == ("measured" if name != "SGD" else "predicted")


def test_all_of_torch_is_tried() -> None:
    # Those that are missing above have tests of their own.
    own = {kind for kind in vars(torch.optim).values() if isinstance(kind, type)}
    names = {kind.__name__ for kind in own if issubclass(kind, Optimizer)}
    tried = {name.partition(" ")[0] for name in MAKES}
    assert names - tried == {"Optimizer", "LBFGS", "SparseAdam", "Muon"}


def test_muon_takes_matrices_only() -> None:
    model = net()
    optimizer = torch.optim.Muon([model[3].weight])
    found = summary(model, optimizer=optimizer)
    assert "5 trainable parameters in no group of this Muon" in found.notes
    step(model, optimizer)
    assert found.optimizer_bytes == measuring.state(optimizer)


def test_groups_with_different_options() -> None:
    model = net()
    groups = [
        {"params": model[0].parameters(), "amsgrad": True},
        {"params": [*model[1].parameters(), *model[3].parameters()]},
    ]
    optimizer = torch.optim.Adam(groups)
    found = summary(model, optimizer=optimizer)
    step(model, optimizer)
    assert found.optimizer_bytes == measuring.state(optimizer)


def test_what_is_there_is_measured_and_what_is_not_is_predicted() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([*model[1].parameters(), *model[3].parameters()])
    step(model, optimizer)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[0].parameters()})
    found = summary(model, optimizer=optimizer)
    assert found.optimizer_how == "measured and predicted"
    step(model, optimizer)
    assert found.optimizer_bytes == measuring.state(optimizer)


def test_frozen_parameters_get_no_state() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    found = summary(model, optimizer=optimizer)
    step(model, optimizer)
    assert found.optimizer_bytes == measuring.state(optimizer) > 0


def test_tied_parameters_have_one_state() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    assert summary(model, optimizer=optimizer).optimizer_bytes == 2 * 4 * (16 + 8) + 3 * 4


def test_lbfgs_grows() -> None:
    model = nn.Linear(8, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), history_size=5)
    found = summary(model, optimizer=optimizer)
    assert found.optimizer_bytes is None
    assert found.notes == ("LBFGS grows with its history of 5 steps, up to 1.0 kB",)
    inputs = torch.randn(20, 8)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :2].sin()).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    found = summary(model, optimizer=optimizer)
    assert found.optimizer_how == "measured"
    assert found.optimizer_bytes == measuring.state(optimizer)
    assert 72 * 12 <= found.optimizer_bytes <= 72 * 14 == 1008


def test_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(50, 3, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters())
    found = summary(model, optimizer=optimizer)
    assert any("sparse gradients" in note for note in found.notes)
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert found.optimizer_bytes == measuring.state(optimizer)


class Careful(Optimizer):
    """Somebody's optimizer: asks for values, draws, remembers things about itself."""

    def __init__(self, params: Iterable[Tensor], decay: float) -> None:
        super().__init__(params, {"decay": decay})
        self.seen: dict[str, list[float]] = {"norms": []}
        self.first = self.param_groups[0]["params"][0]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["rows"], state["nested"] = torch.zeros(p.shape[0]), [torch.zeros_like(p)]
                self.seen["norms"].append(float(p.grad.norm()))
                p.add_(torch.randn_like(p), alpha=group["decay"])
                assert self.first in self.state


def test_an_optimizer_of_somebody_else() -> None:
    model = net()
    optimizer = Careful(model.parameters(), 0.1)
    before, random = everything(model, optimizer), torch.get_rng_state()
    found = summary(model, optimizer=optimizer)
    assert everything(model, optimizer) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert optimizer.seen == {"norms": []}
    step(model, optimizer)
    assert found.optimizer_bytes == measuring.state(optimizer)


class Refuses(Careful):
    def step(self, closure: Any = None) -> None:
        raise RuntimeError("needs a closure")


def test_an_optimizer_that_does_not_step_on_stand_ins() -> None:
    model = net()
    found = summary(model, optimizer=Refuses(model.parameters(), 0.1))
    assert (found.optimizer_bytes, found.optimizer_how) == (None, "unknown")
    assert "Refuses did not step on stand-ins" in found.notes[0]
    assert "state of Refuses" in str(found)


def test_hooks_and_schedulers_see_no_step() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("own"))
    anywhere = register_optimizer_step_post_hook(lambda *_: seen.append("all"))
    try:
        assert summary(model, optimizer=optimizer).optimizer_bytes
        assert summary(model).optimizer_estimates
        assert seen == []
        assert not getattr(optimizer, "_opt_called", False)  # what schedulers ask for
        step(model, optimizer)
        assert seen == ["own", "all"]
    finally:
        anywhere.remove()


def test_the_optimizer_of_another_model() -> None:
    model = net()
    optimizer = torch.optim.AdamW(copy.deepcopy(model).parameters())
    found = summary(model, optimizer=optimizer)
    assert found.optimizer_bytes == 0
    assert "holds no parameter of this model" in found.notes[0]


def test_an_optimizer_of_two_models() -> None:
    model, other = net(), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*model.parameters(), *other.parameters()])
    alone = summary(model, optimizer=torch.optim.AdamW(model.parameters()))
    found = summary(model, optimizer=optimizer)
    assert found.optimizer_bytes == alone.optimizer_bytes
    assert found.notes == ("2 parameters of other models in this AdamW, not counted",)


def test_without_an_optimizer_usual_ones_are_told() -> None:
    model = net()
    found = summary(model)
    assert found.optimizer is found.optimizer_bytes is None
    for name, make in (("AdamW", "AdamW"), ("SGD with momentum", "SGD momentum")):
        expected = summary(model, optimizer=MAKES[make](model.parameters())).optimizer_bytes
        assert found.optimizer_estimates[name] == expected
        assert f"state, if it is {name}" in str(found)


def test_a_wrapped_optimizer_is_looked_into() -> None:
    class Wrapper:
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    found = summary(model, optimizer=Wrapper(optimizer))  # type: ignore[arg-type]
    assert found.optimizer == "AdamW"
    assert found.optimizer_bytes == summary(model, optimizer=optimizer).optimizer_bytes
