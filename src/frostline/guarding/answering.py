"""Putting frozen bytes back, bit for bit, wherever they went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from frostline._state import pieces, write_bits
from frostline.guarding import local
from frostline.guarding.identity import is_frozen_parameter

if TYPE_CHECKING:
    from frostline.guarding.engine import Suspect


def put_back(suspect: Suspect) -> bool:
    """Give a tensor the bytes and the flag that it had; False if nothing hangs at its name.

    Where its memory is still its own, that memory is written, so that tied tensors, views and numpy
    arrays see it too. Memory that came later is left alone, since it may be somebody else's: the
    tensor gets new memory then, and an object that took its place gives way to a new one.
    No version moves, so this may happen between forward and backward.

    Raises:
        ValueError: nobody kept a copy of the bytes.
    """
    now, old = suspect.now, suspect.reference.old.copy
    if now is None:
        return False
    if old is None:
        raise ValueError(f"{suspect.watched.name}: its old bytes were not kept")
    if suspect.replaced and not local.is_shard(now):
        now = _hang_up(suspect, now, old)
    else:
        _fill(local.of(now), old, rebound=suspect.rebound)
    if is_frozen_parameter(suspect.watched) and now.requires_grad:
        now.requires_grad_(False)
    return True


def _fill(tensor: Tensor, old: Tensor, *, rebound: bool) -> None:
    if rebound or not _fits(tensor, old):
        _rebind(tensor, _new(old, tensor))
    else:
        write_bits(tensor, old)


def _rebind(tensor: Tensor, new: Tensor) -> None:
    """Other memory for the same object."""
    if not hasattr(type(tensor), "__tensor_flatten__"):
        tensor.data = new
        return
    # `.data` of a wrapper is not what it wraps.
    for name in new.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
        setattr(tensor, name, getattr(new, name))


def _hang_up(suspect: Suspect, now: Tensor, old: Tensor) -> Tensor:
    """A new object at every place where another one took over."""
    watched = suspect.watched
    new = _new(old, now)
    if watched.places[0].kind == "parameter":
        new = nn.Parameter(new, requires_grad=now.requires_grad)
    for place in watched.places:
        setattr(place.owner, place.attribute, new)
        place.tensor = new
    watched.tensor = suspect.now = new
    return new


def _new(old: Tensor, now: Tensor) -> Tensor:
    """The old bytes in memory of their own, where the tensor lives now."""
    with torch.no_grad():
        return old.detach().to(now.device, copy=True)


def _fits(tensor: Tensor, old: Tensor) -> bool:
    """Whether the memory takes these bytes as it is."""
    if type(tensor) is not type(old) and hasattr(type(old), "__tensor_flatten__"):
        return False
    return [_form(piece) for piece in pieces(tensor)] == [_form(piece) for piece in pieces(old)]


def _form(piece: Tensor) -> tuple[torch.dtype, torch.Size]:
    return piece.dtype, piece.shape


def drop_optimizer_state(optimizers: Iterable[Optimizer], tensors: Iterable[Tensor]) -> list[str]:
    """Remove what optimizers keep for frozen tensors; says what that was.

    LBFGS keeps one state for all of its parameters together, so it is left alone.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> weight.grad = torch.ones(2)
        >>> optimizer.step()
        >>> drop_optimizer_state([optimizer], [weight])
        ['SGD: momentum_buffer']
    """
    frozen, dropped = list(tensors), []
    for optimizer in optimizers:
        if isinstance(optimizer, LBFGS):
            continue
        found = [optimizer.state.pop(tensor) for tensor in frozen if tensor in optimizer.state]
        keys = dict.fromkeys(key for kept in found for key in kept)
        if found:
            dropped.append(f"{type(optimizer).__name__}: {', '.join(map(str, keys))}")
    return dropped
