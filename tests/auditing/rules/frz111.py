"""Cases of FRZ111, router-bias-update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.auditing.cases import Case
from tests.zoo import seeded

_ONLY = frozenset({"FRZ111"})


class Router(nn.Module):
    """As torchtitan has it: the bias chooses, the scores weight."""

    def __init__(self, name: str = "expert_bias") -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.register_buffer(name, torch.zeros(3))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        return scores * (scores + getattr(self, self.name)).softmax(-1)


def _net(name: str = "expert_bias") -> nn.Sequential:
    model = nn.Sequential(Router(name), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    return model


def _hooked(model: nn.Sequential, hook: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model[1].parameters())
    optimizer.register_step_pre_hook(hook)
    return optimizer


def _deepseek() -> nn.Module:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=16, hidden_size=8, intermediate_size=8, moe_intermediate_size=8,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4,
        num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=4,
        q_lora_rank=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        max_position_embeddings=16,
    )  # fmt: skip
    with seeded(3):
        model = DeepseekV3ForCausalLM(config)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return model


def bad_hook_moves_it() -> Case:
    model = _net()
    optimizer = _hooked(model, lambda *_: model[0].expert_bias.add_(0.01))
    return Case(model, optimizer=optimizer, batch=torch.randn(4, 4), codes=_ONLY)


def bad_hook_by_reading() -> Case:
    model = _net()
    optimizer = _hooked(model, lambda *_: model[0].expert_bias.add_(0.01))
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_deepseek() -> Case:
    """Only told: nothing here moves it."""
    return Case(_deepseek(), codes=_ONLY)


def bad_hook_that_moves_something_else() -> Case:
    """Only told, since the step was run."""
    model = _net()
    optimizer = _hooked(model, lambda *_: model[1].bias.data.add_(0.01))
    return Case(model, optimizer=optimizer, batch=torch.randn(4, 4), codes=_ONLY)


def good_router_that_trains() -> Case:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Router(), nn.Linear(3, 1)))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters())
    optimizer.register_step_pre_hook(lambda *_: model[1][0].expert_bias.add_(0.01))
    return Case(model, optimizer=optimizer, batch=torch.randn(4, 4))


def good_another_buffer_of_a_router() -> Case:
    return Case(_net("bias_of_gate"), batch=torch.randn(4, 4))
