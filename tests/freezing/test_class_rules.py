"""Others change the class of a module too: every order of theirs and ours."""

from __future__ import annotations

import abc
import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils import weight_norm as hooked_weight_norm
from transformers.modeling_layers import GradientCheckpointingLayer

import frostline as fl
from frostline.errors import FreezeError
from tests.freezing.content import content, moved
from tests.zoo import live

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))


class Noisy(nn.Linear):
    """A layer that reads `training` and writes to itself then."""

    def __init__(self, width_in: int = 4, width_out: int = 4) -> None:
        super().__init__(width_in, width_out)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x)


class Negative(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return -weight


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store: Path = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Other:
    """What somebody else does to the layer: `apply` it, perhaps `remove` it, `run` the model."""

    def __init__(
        self,
        apply: Callable[[nn.Module], Any],
        remove: Callable[[nn.Module, Any], Any] | None = None,
        *,
        wraps: bool = False,
    ) -> None:
        self.apply, self.remove, self.wraps = apply, remove, wraps


OTHERS: dict[str, Other] = {
    "parametrize": Other(
        lambda top: parametrize.register_parametrization(top[0], "weight", Negative()),
        lambda top, _: parametrize.remove_parametrizations(
            top[0], "weight", leave_parametrized=False
        ),
    ),
    "spectral_norm": Other(
        lambda top: parametrizations.spectral_norm(top[0]),
        lambda top, _: parametrize.remove_parametrizations(top[0], "weight"),
    ),
    "spectral_norm by hook": Other(
        lambda top: hooked_spectral_norm(top[0]), lambda top, _: remove_spectral_norm(top[0])
    ),
    "weight_norm by hook": Other(
        lambda top: hooked_weight_norm(top[0]), lambda top, _: remove_weight_norm(top[0])
    ),
    "second freeze": Other(lambda top: fl.freeze(top, "0"), lambda _, part: part.undo()),
    "fully_shard": Other(lambda top: (fully_shard(top[0]), fully_shard(top))),
    "DDP": Other(DistributedDataParallel, wraps=True),
    "compile": Other(lambda top: torch.compile(top, backend="aot_eager"), wraps=True),
}


def orders(other: Other) -> list[str]:
    """Every order of Freeze, Undo, Apply and Remove that keeps F before U and A before R."""
    events = "FUAR" if other.remove else "FUA"
    every = ("".join(p) for p in itertools.permutations(events))
    return [
        o
        for o in every
        if o.index("F") < o.index("U") and ("R" not in o or o.index("A") < o.index("R"))
    ]


CASES = [
    (name, order)
    for name, other in OTHERS.items()
    for order in orders(other)
    # DDP waits for gradients of what was trainable when it was built: freezing it is refused.
    if not (name == "DDP" and order == "AFU")
]


def holds(run: nn.Module, layer: nn.Module) -> bool:
    """Whether a training step on everything leaves the layer alone; it must work either way."""
    run.train()
    before = layer.calls.clone()
    run(X.clone().requires_grad_()).sum().backward()
    return torch.equal(layer.calls, before) and not layer.training


@pytest.mark.parametrize(("name", "order"), CASES, ids=[f"{n}-{o}" for n, o in CASES])
def test_every_order_works_and_holds_while_frozen(name: str, order: str, one_rank: None) -> None:
    torch._dynamo.reset()
    other = OTHERS[name]
    top = nn.Sequential(Noisy(), nn.Linear(4, 4))
    layer, run, trace = top[0], top, ""
    flags = {id(p) for p in top.parameters() if p.requires_grad}
    part: Any = None
    applied: Any = None
    second = False
    for event in order:
        trace += event
        if event == "F":
            part = fl.freeze(top, "0")
        elif event == "U":
            part.undo()
        elif event == "A":
            applied = other.apply(top)
            run = applied if other.wraps else top
            second = name == "second freeze"
        else:
            other.remove(top, applied)  # type: ignore[misc]
            second = False
        frozen = ("F" in trace and "U" not in trace) or second
        assert holds(run, layer) == frozen, f"after {trace}"
        assert isinstance(layer, Noisy)
        with torch.no_grad():
            layer(X)  # the hooks leave a weight with a graph, which torch itself cannot copy
        copied = copy.deepcopy(layer) if name != "fully_shard" and not other.wraps else layer
        assert copied.training is not frozen, f"a copy after {trace}"

    assert not any(key.startswith("_frostline") for m in top.modules() for key in vars(m))
    fresh = type(layer)(4, 4) if name != "fully_shard" else Noisy()
    assert holds(fresh, fresh) is False, "the class that is left is inert"
    if name not in ("fully_shard", "weight_norm by hook", "spectral_norm by hook"):
        # These make new Parameter objects.
        trainable = {id(p) for p in top.parameters() if p.requires_grad}
        assert flags <= trainable, "flags come back wherever the parameter hangs now"
    if "R" in order and order.index("R") < order.index("U"):
        assert type(layer) is Noisy


def test_a_parameter_made_by_a_hook_on_a_frozen_layer_is_named() -> None:
    """The old weight_norm replaces `weight` by two new parameters, which nobody froze."""
    top = nn.Sequential(Noisy())
    part = fl.freeze(top)
    hooked_weight_norm(top[0])
    kinds = {change.name: change.kind for change in part.changes()}
    assert kinds["0.weight"] == "missing"
    assert kinds["0.weight_g"] == kinds["0.weight_v"] == "added"


@pytest.mark.parametrize("order", ["AF", "FA"])
def test_freezing_reaches_the_dynamic_class_of_one_layer_only(order: str, one_rank: None) -> None:
    """FSDP2 makes one class for all layers of a class; a free one among them stays free."""
    top = nn.Sequential(Noisy(), Noisy())
    for event in order:
        if event == "F":
            fl.freeze(top, "0")
        else:
            fully_shard(top[0])
            fully_shard(top[1])
    assert type(top[0]) is type(top[1]) or order == "FA"
    assert holds(top, top[0])
    assert not holds(top, top[1])
    assert isinstance(nn.Sequential(top[1], nn.ReLU())[:1], nn.Sequential)


def test_the_class_of_a_sharded_layer_stays_on_top_though_it_was_born_with_a_forward(
    one_rank: None,
) -> None:
    """Layers of transformers give a forward to each subclass that is born, so to FSDP2's too."""

    class Layer(GradientCheckpointingLayer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Noisy()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x) * (2 if self.training else 1)
            return out

    top = nn.Sequential(Layer(), nn.Linear(4, 1))
    fully_shard(top[0])
    theirs = type(top[0])
    assert "forward" in vars(theirs)
    part = fl.freeze(top, "0")
    assert type(top[0]) is theirs
    assert top.train()[0].training is False
    part.undo()
    assert type(top[0]) is theirs
    assert top.train()[0].training is True


# --- inert -------------------------------------------------------------------------------


REGISTRY: dict[str, type] = {}


class Registering(nn.Module):
    """A base whose subclasses enter a registry by name: the last of a name wins."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        REGISTRY[cls.__name__] = cls


class FromRegistry(Registering):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) * (2 if self.training else 1)


class Abstract(abc.ABC, nn.Module):
    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        REGISTRY[cls.__name__] = cls

    @abc.abstractmethod
    def head(self) -> None: ...


class Concrete(Abstract):
    def head(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 1)


class Meta(type(nn.Module)):  # type: ignore[misc]
    """A metaclass that registers what it makes."""

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
        made = super().__new__(mcs, name, bases, body)
        REGISTRY[name] = made
        return made

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> None:
        super().__init__(name, bases, body)
        REGISTRY[f"{name} initialised"] = cls


class WithMeta(nn.Module, metaclass=Meta):
    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 1)


Item = TypeVar("Item")


class GenericFirst(Generic[Item], nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 1)


class Slotted:
    __slots__ = ("mark",)


class WithSlots(Slotted, nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 1)


CLASSES: list[type[nn.Module]] = [
    FromRegistry,
    Concrete,
    WithMeta,
    GenericFirst,
    WithSlots,
    nn.Dropout,
    Noisy,
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_registry_sees_a_held_class(cls: type[nn.Module]) -> None:
    before = dict(REGISTRY)
    module = cls()
    fl.freeze(module)
    assert not module.train().training
    assert before == REGISTRY
    assert type(module).__name__ == cls.__name__
    assert type(module).__module__ == cls.__module__
    assert type(module).__qualname__ == cls.__qualname__
    assert type(module).__doc__ == cls.__doc__


@pytest.mark.parametrize("again", ["type(m)()", "m.__class__()", "type(m).__new__"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_objects_made_through_a_held_class_are_ordinary(cls: type[nn.Module], again: str) -> None:
    module = cls()
    fl.freeze(module)
    if again == "type(m).__new__":
        fresh = type(module).__new__(type(module))
        fresh.__init__()  # type: ignore[misc]
    else:
        fresh = type(module)() if again == "type(m)()" else module.__class__()
    assert fresh.training
    assert not fresh.eval().training
    assert fresh.train().training
    assert not module.training
    assert all(p.requires_grad for p in fresh.parameters())
    with_subclass = type("Sub", (type(module),), {})()
    assert with_subclass.train().training, "a subclass of a held class is free too"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_undo_gives_the_very_class_back(cls: type[nn.Module]) -> None:
    module = cls()
    part = fl.freeze(module)
    first = type(module)
    part.undo()
    assert type(module) is cls
    fl.freeze(module)
    assert type(module) is first, "one held class per base class, for the life of the process"


def test_slices_of_a_held_sequential_are_ordinary_containers_of_held_children() -> None:
    body = live(nn.Sequential(Noisy(), nn.BatchNorm1d(4), nn.ReLU()))
    fl.freeze(body)
    piece = body[:2]
    assert type(piece) is nn.Sequential
    assert piece.train().training
    assert not piece[1].training
    longer = nn.Sequential(*body, nn.Dropout(0.5)).train()
    assert longer[-1].training


def test_from_pretrained_of_a_held_class_gives_a_free_model(tmp_path: Path) -> None:
    from transformers import PreTrainedModel

    from tests.zoo import ZOO

    model = ZOO["hf_vit"].build(steps=0)
    model.save_pretrained(tmp_path)
    fl.freeze(model)
    assert isinstance(model, PreTrainedModel)
    fresh = type(model).from_pretrained(tmp_path)
    assert fresh.train().training
    assert all(m.training for m in fresh.modules())
    assert all(p.requires_grad for p in fresh.parameters())
    assert fresh.config.architectures == [model.__class__.__name__]
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_a_class_that_belongs_to_one_instance_is_collected_with_it() -> None:
    class OwnClass(Noisy):
        pass

    module = OwnClass()
    fl.freeze(module)
    alive = weakref.ref(type(module)), weakref.ref(OwnClass)
    del module, OwnClass
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_parametrised_classes_of_held_layers_are_collected() -> None:
    top = nn.Sequential(Noisy())
    parametrize.register_parametrization(top[0], "weight", Negative())
    part = fl.freeze(top)
    alive = weakref.ref(type(top[0]))
    part.undo()
    del top, part
    gc.collect()
    assert alive() is None


class Frozen(nn.Module):
    """A module whose class lets nobody swap it."""

    __slots__ = ("extra",)

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 1)


class Immovable(nn.Module):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            raise TypeError("this class stays")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 1)


def test_a_class_that_cannot_be_swapped_is_refused_and_nothing_is_touched() -> None:
    top = nn.Sequential(Noisy(), Immovable())
    with pytest.raises(FreezeError, match=r"1 \(Immovable\) cannot be held: this class stays"):
        fl.freeze(top)
    assert type(top[0]) is Noisy
    assert all(p.requires_grad for p in top.parameters())
    assert not any(key.startswith("_frostline") for m in top.modules() for key in vars(m))


def test_an_object_with_slots_of_its_own_class_is_held() -> None:
    module = Frozen()
    fl.freeze(module)
    assert not module.train().training


def test_a_class_taken_away_leaves_a_module_in_eval_mode_that_is_named() -> None:
    """Somebody else assigns `__class__`: what is left must still work, and be seen."""
    top = nn.Sequential(Noisy())
    part = fl.freeze(top)
    top[0].__class__ = Noisy
    assert not top[0].training
    top.train()
    assert [(c.name, c.kind) for c in part.changes()] == [("0", "mode")]
    part.undo()
    assert type(top[0]) is Noisy
    assert not holds(top, top[0])


def test_somebody_elses_class_on_top_survives_the_undo() -> None:
    class Theirs(Noisy):
        extra = 7

    top = nn.Sequential(Noisy())
    part = fl.freeze(top)
    top[0].__class__ = Theirs
    part.undo()
    assert type(top[0]) is Theirs
    assert not holds(top, top[0])


def test_moved_is_a_real_comparison() -> None:
    """The comparisons above rest on it: near misses on both sides."""
    layer = live(Noisy())
    before = content(layer)
    assert moved(before, layer) == []
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(9.0))
    assert moved(before, layer) == ["weight"]
