"""Embeddings with ``max_norm`` under a hold: the table is not rewritten."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.freezing.machinery import Held
from frostline.freezing.record import is_held


class HeldEmbedding(Held):
    """``max_norm`` renormalises a copy of the rows that were looked up, never the table."""

    max_norm: float | None

    def forward(self, input: Tensor) -> Tensor:
        if not is_held(self) or self.max_norm is None:
            return super().forward(input)  # type: ignore[no-any-return]
        rows = _renormalised_rows(self, input)
        return rows.view(*input.shape, rows.shape[-1])


class HeldEmbeddingBag(Held):
    """As :class:`HeldEmbedding`, for bags."""

    max_norm: float | None
    norm_type: float
    padding_idx: int | None
    mode: str
    include_last_offset: bool

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        if not is_held(self) or self.max_norm is None:
            output: Tensor = super().forward(input, offsets, per_sample_weights)
            return output
        rows = _renormalised_rows(self, input)
        index = torch.arange(rows.shape[0], device=rows.device).view_as(input)
        padding = None
        if self.padding_idx is not None:
            # One more row stands for the padding, whatever row it was in the table.
            padding = rows.shape[0]
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
            index = index.masked_fill(input == self.padding_idx, padding)
        return F.embedding_bag(
            index,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )


def _renormalised_rows(module: nn.Module, input: Tensor) -> Tensor:
    """The rows that ``input`` asks for, one each, renormalised by torch's own kernel."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    rows = weight.detach().index_select(0, input.reshape(-1))
    each = torch.arange(rows.shape[0], device=rows.device)
    torch.embedding_renorm_(rows, each, module.max_norm, module.norm_type)  # type: ignore[arg-type]
    return rows
