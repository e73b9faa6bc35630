"""One small test for each mechanism of the hold; `make ablate` turns them off one by one.

Each test asks for one thing that only its mechanism gives. tests/ablations.py says which is which.
"""

from __future__ import annotations

import copy
import gc
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import LBFGS, SGD, optimizer
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import FreezeError, FrostlineWarning, FrozenStateChanged, SelectionError
from frostline.freezing.live_parts import all_parts
from frostline.freezing.optimizers import before_step
from tests.freezing.content import content, moved
from tests.zoo import live

X = torch.linspace(-2, 3, 24).view(6, 4)


class Net(nn.Module):
    """A norm and a dropout to freeze, and a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)
        live(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.part(x))
        return out


def frozen(**how: Any) -> tuple[Net, fl.types.FrozenPart]:
    net = Net()
    return net, fl.freeze(net, "part", **how)


def kinds(part: fl.types.FrozenPart) -> set[str]:
    return {change.kind for change in part.changes()}


# --- modes -----------------------------------------------------------------------------------


def test_swap_in() -> None:
    net, _ = frozen()
    before = content(net.part)
    net.train()(X)
    assert moved(before, net.part) == []


def test_getter() -> None:
    net, _ = frozen()
    vars(net.part[1])["training"] = True
    assert not net.part[1].training


def test_setter_remembers_what_was_asked() -> None:
    net, part = frozen()
    net.eval()
    part.undo()
    assert not net.part[1].training


def test_mode_before_the_freeze() -> None:
    net = Net()
    net.part[1].eval()
    part = fl.freeze(net, "part")
    part.undo()
    assert [m.training for m in net.part] == [True, False, True]


def test_ignored_calls_are_counted() -> None:
    net, part = frozen()
    net.train()
    assert [(call.what, call.count) for call in part.ignored_calls] == [("train()", 1)]


class Reading(Net):
    """A root that reads its mode, as many do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else super().forward(x).softmax(1)


def test_nothing_with_something_trainable_below_is_held() -> None:
    net = Reading()
    fl.freeze(net, exclude="head")
    assert net.train().training
    assert not net.part[1].training


def test_modules_of_what_trains_again_are_let_go() -> None:
    net = Reading()
    fl.freeze(net)
    fl.unfreeze(net, "head")
    assert net.train().training
    assert not net.part[1].training


# --- copies ----------------------------------------------------------------------------------


def test_record_goes_along_with_a_copy() -> None:
    net, _ = frozen()
    twin = copy.deepcopy(net)
    before = content(twin.part)
    twin.train()(X)
    assert moved(before, twin.part) == []


def test_copy_owns_its_part() -> None:
    net, part = frozen()
    twin = copy.deepcopy(net)
    (own,) = fl.parts(twin)
    assert own is not part
    assert own.model is twin
    assert own.sealed


def test_copy_of_a_module_inside_gets_a_part() -> None:
    net, _ = frozen()
    twin = copy.deepcopy(net.part)
    (own,) = fl.parts(twin)
    assert own.model is twin


def test_pickle_names_the_base_class() -> None:
    net, _ = frozen()
    norm = pickle.loads(pickle.dumps(net.part))[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert not norm.train().training


# --- gradients and optimizers ----------------------------------------------------------------


def with_gradients() -> Net:
    net = Net()
    net(X).sum().backward()
    return net


def test_gradients_go_at_the_freeze() -> None:
    net = with_gradients()
    fl.freeze(net, "part")
    assert all(p.grad is None for p in net.part.parameters())


def test_gradients_come_back() -> None:
    net = with_gradients()
    old = net.part[0].weight.grad
    fl.freeze(net, "part").undo()
    assert net.part[0].weight.grad is old


def test_flags_come_back() -> None:
    net = Net()
    net.part[0].bias.requires_grad_(False)
    fl.freeze(net, "part").undo()
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["part.0.bias"]


def test_step_hook() -> None:
    net, _ = frozen()
    before = content(net.part)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    SGD(net.parameters(), lr=1.0).step()
    assert moved(before, net.part) == []


def test_step_hook_leaves() -> None:
    _, part = frozen()
    assert before_step in optimizer._global_optimizer_pre_hooks.values()
    gc.collect()
    part.undo()
    # Parts of other tests may be alive still; then it stays.
    watching = before_step in optimizer._global_optimizer_pre_hooks.values()
    assert watching == bool(all_parts())


def test_lbfgs() -> None:
    net, _ = frozen()
    with pytest.raises(FreezeError, match="LBFGS"):
        LBFGS(net.parameters()).step(lambda: net(X).sum())


def test_empty_optimizer() -> None:
    net = Net()
    with pytest.raises(FreezeError, match="nothing to train"):
        fl.freeze(net, optimizer=SGD(net.parameters(), lr=1.0))


# --- norms -----------------------------------------------------------------------------------


def test_reset() -> None:
    net, _ = frozen()
    before = content(net.part)
    with pytest.warns(FrostlineWarning, match="was ignored"):
        net.part[1].reset_running_stats()
    assert moved(before, net.part) == []


def test_batch_statistics() -> None:
    net = Net().train()
    norm = net.part[1]
    expected = copy.deepcopy(norm)(X)
    before = content(norm)
    fl.freeze(net, "part", stats="batch", mode="follow")
    assert torch.equal(norm(X), expected)
    assert moved(before, norm) == []


def test_batch_statistics_of_instance_norm() -> None:
    norm = live(nn.InstanceNorm1d(4, affine=True, track_running_stats=True))
    x = X.view(2, 4, 3)
    expected = copy.deepcopy(norm).train()(x)
    before = content(norm)
    fl.freeze(norm, stats="batch", mode="follow")
    assert torch.equal(norm.train()(x), expected)
    assert moved(before, norm) == []


# --- modules that write in eval mode ---------------------------------------------------------


def holds(module: nn.Module, x: Tensor) -> bool:
    part = fl.freeze(module)
    before = content(module)
    module.eval()(x)
    return moved(before, module) == [] and part.ok


def test_embedding() -> None:
    assert holds(nn.Embedding(5, 4, max_norm=0.5), torch.tensor([[0, 3]]))


def test_embedding_bag() -> None:
    assert holds(nn.EmbeddingBag(5, 4, max_norm=0.5), torch.tensor([[0, 3]]))


def test_observer() -> None:
    from torch.ao.quantization import MinMaxObserver

    assert holds(MinMaxObserver(), X)


def test_fake_quantize() -> None:
    from torch.ao.quantization import FakeQuantize

    module = FakeQuantize()
    module(X)
    module.scale.fill_(0.5)  # not what its observer would say
    assert holds(module, X)


class Counter(nn.Module):
    """Counts its calls, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_first_forward_is_watched() -> None:
    net = Counter()
    fl.freeze(net)
    with pytest.raises(FrozenStateChanged, match="calls is frozen"):
        net(X)
    assert net.calls == 0


# --- gates -----------------------------------------------------------------------------------


class AskingLSTM(nn.LSTM):
    """Notes what its kernel will be told."""

    told: tuple[bool, float] | None = None

    def check_forward_args(self, *args: Any) -> None:
        self.told = self.training, self.dropout
        super().check_forward_args(*args)


def test_recurrent_kernel_is_in_training_mode_when_gradients_pass() -> None:
    rnn = AskingLSTM(4, 3, 2, dropout=0.5)
    fl.freeze(rnn)
    rnn(X)
    assert rnn.told == (False, 0.5)
    rnn(X.clone().requires_grad_())
    assert rnn.told == (True, 0.0)
    assert not rnn.training


def test_fast_path_is_not_chosen_by_the_freeze() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    x, padded = X.view(2, 3, 4), torch.tensor([[False, False, True], [False, False, False]])
    expected = net(x, src_key_padding_mask=padded).detach()
    fl.freeze(net)
    # The fast path would put exact zeros where it is padded.
    torch.testing.assert_close(net(x, src_key_padding_mask=padded), expected)


def checkpointed_layer() -> Any:
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Layer(GradientCheckpointingLayer):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.gradient_checkpointing = True
            self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            self.modes: list[bool] = []

        def forward(self, x: Tensor) -> Tensor:
            self.modes.append(self.training)
            out: Tensor = self.linear(x)
            return out.sin()

    return Layer()


def test_checkpointing_goes_on() -> None:
    layer = checkpointed_layer()
    fl.freeze(layer)
    layer(X.clone().requires_grad_()).sum().backward()
    assert len(layer.modes) == 2


def test_checkpointed_forward_is_in_eval_mode() -> None:
    layer = checkpointed_layer()
    fl.freeze(layer)
    layer(X.clone().requires_grad_()).sum().backward()
    assert not any(layer.modes)


# --- what others put in its place ------------------------------------------------------------


def test_frozen_again_after_a_load() -> None:
    net, _ = frozen()
    net.part[0].weight = nn.Parameter(torch.ones(4, 4))
    SGD(net.parameters(), lr=1.0).step()
    assert not net.part[0].weight.requires_grad


def test_frozen_again_when_a_mode_is_written() -> None:
    net, _ = frozen()
    net.part[0].weight = nn.Parameter(torch.ones(4, 4))
    net.train()
    assert not net.part[0].weight.requires_grad


def test_replaced_module_is_refused() -> None:
    net, _ = frozen()
    net.part[2] = nn.Dropout(0.1)
    with pytest.raises(FrozenStateChanged, match=r"part\.2 was replaced"):
        net.train()


# --- classes ---------------------------------------------------------------------------------


class Double(nn.Module):
    """A parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_held_class_goes_below_the_classes_of_others() -> None:
    norm = live(nn.BatchNorm1d(4))
    parametrize.register_parametrization(norm, "weight", Double())
    theirs = type(norm)
    fl.freeze(norm)
    before = content(norm)
    norm.train()(X)
    assert moved(before, norm) == []
    assert type(norm) is theirs


def test_undo_leaves_the_classes_of_others() -> None:
    norm = live(nn.BatchNorm1d(4))
    part = fl.freeze(norm)
    parametrize.register_parametrization(norm, "weight", Double())
    theirs = type(norm)
    part.undo()
    assert type(norm) is theirs
    assert norm.train().training


def test_undo_gives_the_class_back() -> None:
    net, part = frozen()
    assert type(net.part[1]) is not nn.BatchNorm1d
    part.undo()
    assert type(net.part[1]) is nn.BatchNorm1d


def test_registries_of_subclasses_do_not_see_held_classes() -> None:
    seen: list[type] = []

    class Registered(nn.Dropout):
        def __init_subclass__(cls) -> None:
            seen.append(cls)

    module = Registered()
    fl.freeze(module)
    assert type(module) is not Registered
    assert seen == []


def test_only_modules_that_read_training_change_their_class() -> None:
    net, _ = frozen()
    assert type(net.part[0]) is nn.Linear
    assert type(net.part) is nn.Sequential


def test_plain_classes_while_released() -> None:
    net, part = frozen()
    with part.released():
        assert type(net.part[1]) is nn.BatchNorm1d


def test_release_is_verified() -> None:
    net, part = frozen()
    with pytest.raises(FrozenStateChanged, match="running_mean"), part.released():
        net.part[1].running_mean += 1


# --- the plan --------------------------------------------------------------------------------


def test_half_of_a_tied_tensor() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    with pytest.raises(SelectionError, match="one tied tensor"):
        fl.freeze(net, "0")


def test_never_trained_norm_is_told() -> None:
    with pytest.warns(FrostlineWarning, match="never trained"):
        fl.freeze(nn.BatchNorm1d(4))


# --- the seal --------------------------------------------------------------------------------


def test_value() -> None:
    net, part = frozen()
    net.part[0].weight.data[0, 0] += 1
    assert kinds(part) == {"value"}


def test_cast() -> None:
    net, part = frozen()
    net.bfloat16().float()
    assert "cast" in kinds(part)
    assert part.ok


def test_shape() -> None:
    net, part = frozen()
    net.part[0].bias.data = torch.zeros(2)
    assert kinds(part) == {"shape"}


def test_missing() -> None:
    net, part = frozen()
    net.part[0].bias = None
    assert kinds(part) == {"missing"}


def test_added() -> None:
    net, part = frozen()
    net.part[0].register_buffer("extra", torch.zeros(1))
    assert kinds(part) == {"added"}


def test_replaced() -> None:
    net, part = frozen()
    old = net.part[0].weight.detach()
    net.part[0].weight = nn.Parameter(old.clone(), requires_grad=False)
    assert kinds(part) == {"replaced"}


def test_requires_grad() -> None:
    net, part = frozen()
    net.part[0].weight.requires_grad_(True)
    assert kinds(part) == {"requires_grad"}


def test_mode() -> None:
    net, part = frozen()
    net.part[1].__class__ = nn.BatchNorm1d
    net.part[1].train()
    assert kinds(part) == {"mode"}
