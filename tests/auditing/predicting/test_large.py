"""Language models too large for any memory here, from their configs."""

from __future__ import annotations

import resource
import time

import pytest
import torch
from torch import Tensor, nn

from frostline._names import named_tensors
from frostline.auditing.predicting import predict
from tests.auditing.predicting.truth import adamw


def llama(layers: int) -> nn.Module:
    """As LLaMA 2 of 70 billion parameters, which has 80 layers, in half precision, on meta."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    return model.requires_grad_(False).train()


def texts() -> dict[str, Tensor]:
    ids = torch.zeros(2, 2048, dtype=torch.long, device="meta")
    return {"input_ids": ids, "labels": ids}


def last(model: nn.Module) -> set[str]:
    """Names of what is trained: the last layer."""
    layer = model.get_submodule("model.layers")[-1].requires_grad_(True)
    mine = {id(p) for p in layer.parameters()}
    return {entry.name for entry in named_tensors(model) if id(entry.tensor) in mine}


def peak() -> float:
    """In MiB, of this process, until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("layers", [2, pytest.param(80, marks=pytest.mark.slow)])
def test_a_layer_of_a_large_model(layers: int, record_property) -> None:
    model = llama(layers)
    expected = last(model)
    before, start = peak(), time.process_time()
    step = predict(model, adamw(model), texts(), None, train=True)
    record_property("seconds", time.process_time() - start)
    record_property("mib", peak() - before)
    names = {id(entry.tensor): entry.name for entry in named_tensors(model)}
    assert {names[key] for key in step.changed} == expected
    assert step.undecided == {}
    assert step.loss == "the loss of model(**batch)"
    # The parameters of the smallest of them alone would take 4 GiB, a layer's activations 3.
    assert peak() - before < 200
