"""What a module holds, byte by byte: the slow, obvious side of every comparison."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Content = dict[str, tuple[str, tuple[int, ...], bytes]]


def raw(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """Dtype, shape and bytes."""
    dense = tensor.detach().cpu().contiguous()
    return (
        str(dense.dtype),
        tuple(dense.shape),
        dense.reshape(-1).view(torch.uint8).numpy().tobytes(),
    )


def content(module: nn.Module) -> Content:
    """Parameters, buffers (non-persistent ones too) and plain tensor attributes."""
    named = dict(module.named_parameters(remove_duplicate=False))
    named |= dict(module.named_buffers(remove_duplicate=False))
    for prefix, child in module.named_modules(remove_duplicate=False):
        own = vars(child)
        # Old weight_norm and spectral_norm make `weight` anew from these before each forward.
        made = {n.removesuffix(end) for n in child._parameters for end in ("_orig", "_v")}
        named |= {f"{prefix}.{k}": own[k] for k in own.keys() - made if isinstance(own[k], Tensor)}
    return {name: raw(tensor) for name, tensor in named.items()}


def moved(before: Content, module: nn.Module) -> list[str]:
    """Names whose bytes are not those of `before`, or which came or went."""
    after = content(module)
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def steps(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    count: int = 3,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Real training steps over all parameters, with decay, so that nothing stays put by luck."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(count):
        model.train()
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
