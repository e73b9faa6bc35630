"""Spectral norms iterate once for all runs, as they would in one forward of all their samples.

Source: Miyato et al. 2018. Each training forward moves the vectors u and v by power iteration, so
several forwards a window would move them further, and give each run another weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

if TYPE_CHECKING:
    from frostline.lockstep.lockstep import Lockstep

Pair = tuple[Tensor, Tensor]


class SpectralNorms:
    """Those of some models, in both of torch's forms; the first run to come iterates.

    Args:
        models: looked through once.
        lockstep: says which run it is.
    """

    def __init__(self, models: Sequence[nn.Module], lockstep: Lockstep) -> None:
        modules = [module for model in models for module in model.modules()]
        self._lockstep = lockstep
        self._values: dict[tuple[int, int], Pair] = {}
        self._parametrized = [m for m in modules if isinstance(m, _SpectralNorm)]
        self._hooks = [
            (module, hook)
            for module in modules
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, SpectralNorm)
        ]

    def install(self) -> None:
        """Stand in for the methods of these objects, not of their classes."""
        for module in self._parametrized:
            vars(module)["_power_method"] = self._once(module)
        for _, hook in self._hooks:
            vars(hook)["compute_weight"] = self._weight_once(hook)

    def remove(self) -> None:
        """Take it all back."""
        for module in self._parametrized:
            vars(module).pop("_power_method", None)
        for _, hook in self._hooks:
            vars(hook).pop("compute_weight", None)

    def _once(self, module: _SpectralNorm) -> Any:
        def power_method(weight: Tensor, iterations: int) -> None:
            u, v = module._u, module._v
            if self._lockstep.first_time(module):
                _SpectralNorm._power_method(module, weight, iterations)
                self._keep(module, (u, v))
            else:
                with torch.no_grad():
                    for vector, kept in zip((u, v), self._kept(module), strict=True):
                        vector.copy_(kept)

        return power_method

    def _weight_once(self, hook: SpectralNorm) -> Any:
        names = f"{hook.name}_u", f"{hook.name}_v"

        def compute_weight(module: nn.Module, do_power_iteration: bool) -> Tensor:
            if not do_power_iteration:
                return SpectralNorm.compute_weight(hook, module, do_power_iteration=False)
            if self._lockstep.first_time(hook):
                weight = SpectralNorm.compute_weight(hook, module, do_power_iteration=True)
                self._keep(hook, (module._buffers[names[0]], module._buffers[names[1]]))
                return weight
            # Other objects for a moment: the graph keeps them, and later iterations write in place.
            before = {name: module._buffers[name] for name in names}
            module._buffers.update(zip(names, self._kept(hook), strict=True))
            try:
                return SpectralNorm.compute_weight(hook, module, do_power_iteration=False)
            finally:
                module._buffers.update(before)

        return compute_weight

    def _keep(self, owner: object, vectors: tuple[Tensor | None, Tensor | None]) -> None:
        self._lockstep.updates.written.update(map(id, vectors))
        u, v = (vector.detach().clone() for vector in vectors if vector is not None)
        self._values[self._key(owner)] = u, v

    def _kept(self, owner: object) -> Pair:
        return self._values[self._key(owner)]

    def _key(self, owner: object) -> tuple[int, int]:
        return id(owner), self._lockstep.current.seen[id(owner)]
