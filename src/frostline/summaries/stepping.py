"""What an optimizer would keep for a parameter, found by letting a twin of it take one step.

The twin has the same class and options and one stand-in parameter; the user's optimizer is only
read. Stand-ins have no memory where the optimizer allows it.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._batches import tensors_in
from frostline.summaries.footprint import nbytes

StandIn = Callable[[Tensor], nn.Parameter]


def state_of_one(
    optimizer: Optimizer, group: Mapping[str, Any], like: Tensor, known: Iterable[Any]
) -> int | None:
    """Bytes that the first step would keep for a parameter like this one; None if it cannot say.

    Args:
        optimizer: whose class and options.
        group: the group that the parameter is in.
        like: the parameter, for its shape and type.
        known: objects that the optimizer may refer to and that are not to be copied.
    """
    for stand_in in (_without_memory, _with_zeros, _with_sparse_gradient):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parameter = stand_in(like)
                other = twin(optimizer, group, [parameter], known)
                # Below the hooks of optimizers: guards and schedulers would count this as a step.
                inspect.unwrap(type(other).step)(other)
            return nbytes(tensors_in(other.state[parameter]))
        except Exception:  # whatever an optimizer of somebody else dislikes about the stand-in
            continue
    return None


def _without_memory(like: Tensor) -> nn.Parameter:
    return _given(torch.empty_like(like, device="meta"))


def _with_zeros(like: Tensor) -> nn.Parameter:
    return _given(torch.zeros_like(like, device="cpu" if like.is_meta else None))


def _with_sparse_gradient(like: Tensor) -> nn.Parameter:
    parameter = _with_zeros(like)
    index = torch.zeros(1, 1, dtype=torch.long, device=parameter.device)
    parameter.grad = torch.sparse_coo_tensor(index, parameter.data[:1].clone(), parameter.shape)
    return parameter


def _given(data: Tensor) -> nn.Parameter:
    # Not trainable: an optimizer looks at the gradient alone, and may write in place this way.
    parameter = nn.Parameter(data, requires_grad=False)
    parameter.grad = torch.zeros_like(data)
    return parameter


def twin(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: list[nn.Parameter],
    known: Iterable[Any],
) -> Optimizer:
    """An optimizer of the same class and options that steps these, without any state.

    Args:
        optimizer: it is only read.
        group: the one of its groups whose options count.
        parameters: the first takes the place of each parameter that ``optimizer`` refers to.
        known: objects that it may refer to and that are not to be copied.
    """
    other = object.__new__(type(optimizer))
    # Wherever the optimizer refers to a parameter of its own, the twin refers to the stand-in.
    memo: dict[int, Any] = {id(thing): thing for thing in known}
    memo |= {id(p): parameters[0] for g in optimizer.param_groups for p in g["params"]}
    memo[id(optimizer)] = other
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    own = {k: v for k, v in vars(optimizer).items() if k not in _REPLACED and "hook" not in k}
    vars(other).update(copy.deepcopy(own, memo))
    other.state = defaultdict(dict)
    other.param_groups = [{**copy.deepcopy(options, memo), "params": parameters}]
    return other


_REPLACED = frozenset({"state", "param_groups"})
