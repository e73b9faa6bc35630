"""Everything that may happen to a frozen part without a byte of it changing.

An action gets the net, one batch, and the optimizer that was built before the freeze; it returns
the net to look at, another one where it makes a copy. `moves` says of which kinds it changes
bytes when they are frozen by flag only.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from frostline.errors import FrostlineWarning
from tests.freezing.kinds import Net, step

Moves = Literal["writers", "with parameters", "writers or with parameters", "norms"]


@dataclass(frozen=True)
class Action:
    """What is done.

    Attributes:
        run: after the freeze.
        moves: the kinds that it changes when they are frozen by flag only.
        pickles: it pickles the module.
        before: before the freeze; its optimizer is handed to `run`.
    """

    run: Callable[[Net, Tensor, Optimizer | None], nn.Module]
    moves: Moves
    before: Callable[[Net, Tensor], Optimizer] | None = None
    pickles: bool = False


def _train_forward(net: nn.Module, x: Tensor, times: int = 2) -> None:
    for _ in range(times):
        step(net, x)


# --- modes -----------------------------------------------------------------------------------


def model_train(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.eval()
    net.train()
    _train_forward(net, x)
    return net


def child_train(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.eval()
    net.head.train()
    for child in net.part.modules():
        child.train()
    _train_forward(net, x)
    return net


def write_training(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.eval()
    for module in net.modules():
        module.training = True
    _train_forward(net, x)
    return net


def write_training_past_setattr(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.eval()
    for module in net.modules():
        object.__setattr__(module, "training", True)
    _train_forward(net, x)
    return net


def write_training_into_dict(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.eval()
    for module in net.modules():
        module.__dict__["training"] = True
    _train_forward(net, x)
    return net


def restore_modes_one_by_one(net: Net, x: Tensor, _: Any) -> nn.Module:
    """As Lightning does around validation: note every mode, eval, write every mode back."""
    net.train()
    modes = {name: True for name, _ in net.named_modules()}
    net.eval()
    net(x)
    for name, module in net.named_modules():
        module.training = modes[name]
    _train_forward(net, x)
    return net


# --- optimizers ------------------------------------------------------------------------------

Make = Callable[[list[nn.Parameter]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.1, weight_decay=0.1),
    "AdamW for-loop": partial(torch.optim.AdamW, lr=0.1, foreach=False),
    "AdamW foreach": partial(torch.optim.AdamW, lr=0.1, foreach=True),
    "AdamW fused": partial(torch.optim.AdamW, lr=0.1, fused=True),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.9),
    "Adafactor": partial(torch.optim.Adafactor, lr=0.1, weight_decay=0.1),
}


def _stale_gradients(net: Net, x: Tensor, make: Make) -> Optimizer:
    """All parameters are handed in and have gradients before the freeze."""
    step(net.train(), x)
    return make(list(net.parameters()))


def _three_steps(net: Net, x: Tensor, optimizer: Optimizer | None) -> nn.Module:
    net.train()
    for _ in range(3):
        step(net, x, optimizer)
    return net


def _write_gradients(net: Net, x: Tensor, _: Any) -> nn.Module:
    optimizer = OPTIMIZERS["SGD"](list(net.parameters()))
    net.train()
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return net


def _momentum_before(net: Net, x: Tensor) -> Optimizer:
    optimizer = OPTIMIZERS["SGD"](list(net.parameters()))
    step(net.train(), x, optimizer)
    # The usual loop zeroes with set_to_none=False in old scripts: the gradient is there, and 0.
    optimizer.zero_grad(set_to_none=False)
    return optimizer


# --- statistics ------------------------------------------------------------------------------


def update_statistics(net: Net, x: Tensor, _: Any) -> nn.Module:
    momenta = {name: getattr(m, "momentum", None) for name, m in net.named_modules()}
    update_bn([x, x + 1 if x.is_floating_point() else x], net)
    for name, module in net.named_modules():
        assert getattr(module, "momentum", None) == momenta[name], name
    return net


def reset_statistics(net: Net, x: Tensor, _: Any) -> nn.Module:
    with warnings.catch_warnings():
        # That it warns is asked in test_switches; a control has nothing to warn of.
        warnings.simplefilter("ignore", FrostlineWarning)
        for module in net.modules():
            if hasattr(module, "reset_running_stats"):
                module.reset_running_stats()
    return net


# --- ways of running -------------------------------------------------------------------------


def recompute(net: Net, x: Tensor, _: Any, *, reentrant: bool) -> nn.Module:
    net.train()
    # Reentrant checkpointing wants an input and an output that require gradients.
    token = torch.zeros((), requires_grad=True)
    hidden = net.stem(x)

    def run(hidden: Tensor, token: Tensor) -> Tensor:
        out: Tensor = net.part(hidden)
        return out + token

    for _ in range(2):
        out = checkpoint(run, hidden.detach(), token, use_reentrant=reentrant)
        net.head(out).sum().backward()
    return net


def without_gradients(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.train()
    with torch.no_grad():
        net(x)
    with torch.inference_mode():
        net(x)
    return net


def autocast(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.train()
    with torch.autocast("cpu", torch.bfloat16):
        step(net, x)
        step(net, x)
    return net


def functional_call(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.train()
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for _ in range(2):
        torch.func.functional_call(net, state, (x,)).sum().backward()
    return net


def over_samples(net: Net, x: Tensor, _: Any) -> nn.Module:
    net.train()
    with torch.no_grad(), contextlib.suppress(RuntimeError, ValueError):
        # In training torch refuses most of what writes to itself; test_holders asks which kinds
        # run when they are held.
        map_over_batches(net.part, torch.stack([net.stem(x), net.stem(x)]))
    return net


def map_over_batches(module: nn.Module, hidden: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        out: Tensor = torch.func.vmap(module, randomness="different")(hidden)
    return out


# --- copies ----------------------------------------------------------------------------------


def _through(copy_of: Callable[[nn.Module], nn.Module]) -> Callable[[Net, Tensor, Any], nn.Module]:
    def run(net: Net, x: Tensor, _: Any) -> nn.Module:
        # The old weight_norm leaves a tensor with a graph until the next forward.
        with torch.no_grad():
            net.eval()(x)
        copied = copy_of(net)
        assert copied is not net
        optimizer = OPTIMIZERS["SGD"](list(copied.parameters()))
        for _ in range(2):
            step(copied.train(), x, optimizer)
        return copied

    return run


def _saved_and_loaded(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def _pickled(net: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(net))
    return loaded


def _copied_twice(net: nn.Module) -> nn.Module:
    return copy.deepcopy(_pickled(copy.deepcopy(net)))


ACTIONS: dict[str, Action] = {
    "model.train()": Action(model_train, "writers"),
    "child.train()": Action(child_train, "writers"),
    "training = True": Action(write_training, "writers"),
    "object.__setattr__": Action(write_training_past_setattr, "writers"),
    "__dict__": Action(write_training_into_dict, "writers"),
    "modes restored one by one": Action(restore_modes_one_by_one, "writers"),
    **{
        f"three steps of {name}": Action(
            _three_steps, "writers or with parameters", partial(_stale_gradients, make=make)
        )
        for name, make in OPTIMIZERS.items()
    },
    "gradients written by hand": Action(_write_gradients, "with parameters"),
    "momentum from before": Action(_three_steps, "writers or with parameters", _momentum_before),
    "update_bn": Action(update_statistics, "writers"),
    "reset_running_stats": Action(reset_statistics, "norms"),
    "checkpoint": Action(partial(recompute, reentrant=False), "writers"),
    "checkpoint, reentrant": Action(partial(recompute, reentrant=True), "writers"),
    "no_grad": Action(without_gradients, "writers"),
    "autocast": Action(autocast, "writers"),
    "functional_call": Action(functional_call, "writers"),
    "vmap": Action(over_samples, "writers"),
    "deepcopy": Action(_through(copy.deepcopy), "writers"),
    "pickle": Action(_through(_pickled), "writers", pickles=True),
    "torch.save and load": Action(_through(_saved_and_loaded), "writers", pickles=True),
    "copies of copies": Action(_through(_copied_twice), "writers", pickles=True),
}
