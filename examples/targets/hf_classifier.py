"""A classifier of transformers on a frozen encoder, as its forum advises.

frostline audit examples/targets/hf_classifier.py:setup

The encoder is frozen by the prefix of its names, which the embeddings and the pooler do not have:
they stay trainable. Only the classifier was handed to the optimizer. So nothing trains them, and
each step computes gradients of all embeddings that nobody uses.

The audit says:
  FRZ202 warning  the embeddings and the pooler are trainable and in no group of the optimizer.
  FRZ103 info     the encoder's dropout is on: no two epochs see the same features.
`fl.freeze(model, ['bert.embeddings', 'bert.encoder'])` and the pooler in the optimizer mend it.
"""

import torch
from transformers import BertConfig, BertForSequenceClassification


def setup():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=3,
    )
    model = BertForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        if name.startswith("bert.encoder"):
            parameter.requires_grad = False
    model.train()
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(model.classifier.parameters(), lr=1e-3),
        "batch": {
            "input_ids": torch.randint(200, (4, 12)),
            "attention_mask": torch.ones(4, 12, dtype=torch.long),
            "labels": torch.randint(3, (4,)),
        },
        "compute_loss": lambda model, batch: model(**batch).loss,
    }
