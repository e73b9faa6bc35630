"""Results of audits for the tests of their page: of real models, and of many modules by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from frostline.auditing.audit import audit
from tests.zoo import ZOO

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "<!--",
    "{{7*7}}",
    "\x1b[31mred",
    "\u202egnp\u2066",
    "a\u2028b\u2029c",
    "line\nbreak",
    "\ud800",
    "\u0301" * 300,
    "9" * 5000,
    "x" * 10_000,
)
"""Names that would run, steer or break something if they were taken for anything but text."""


@cache
def leaky() -> dict[str, Any]:
    """ResNet-18, all but its head frozen by the flag; one real step; what one rule finds."""
    model = ZOO["resnet18"].build()
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    model.train()
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1, momentum=0.9)
    report = audit(model, optimizer=optimizer, batch=torch.randn(2, 3, 64, 64))
    return report.filter(select=["FRZ101"]).to_dict()


@cache
def small() -> dict[str, Any]:
    """Ten modules, nothing to be found."""
    layers = [nn.Linear(4, 4) for _ in range(9)]
    layers[0].requires_grad_(False)
    return audit(nn.Sequential(*layers)).to_dict()


def stacked(blocks: int) -> nn.Module:
    """Four modules a block in one list, whose norms leak, and a head."""
    block = [
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU()).requires_grad_(False)
        for _ in range(blocks)
    ]
    return nn.ModuleDict({"encoder": nn.ModuleList(block), "head": nn.Linear(2, 2)})


@cache
def thousand() -> dict[str, Any]:
    """About 1,000 modules."""
    return audit(stacked(250)).filter(select=["FRZ101"]).to_dict()


@cache
def many() -> dict[str, Any]:
    """20,003 modules, written as the audit of the same model would, in a fraction of the time."""
    real, blocks = thousand(), 5000
    rows, findings, names = real["map"], real["findings"], []
    root, encoder, block, *inside, head = [*rows[:6], rows[-1]]
    found = [root, encoder]
    for i in range(blocks):
        at, name = len(found), f"encoder.{i}"
        found.append({**block, "name": name, "parent": 1})
        found += [{**row, "name": f"{name}.{j}", "parent": at} for j, row in enumerate(inside)]
        names += [
            f"{name}.1.{tensor}"
            for tensor in ("running_mean", "running_var", "num_batches_tracked")
        ]
    first = findings[0]
    return {
        **real,
        "modules": len(found) + 1,
        "map": [*found, {**head, "parent": 0}],
        "findings": [{**first, "where": f"encoder.{i}.1"} for i in range(blocks)],
        "will_change": names,
        "after_train": names,
    }


@cache
def hostile() -> dict[str, Any]:
    """Frozen norms in training mode with the names of :data:`HOSTILE`."""
    model = nn.Module()
    for name in HOSTILE:
        model.add_module(name, nn.BatchNorm1d(4))
    model.requires_grad_(False)
    model.add_module("head", nn.Linear(4, 2))
    return audit(model).filter(select=["FRZ101"]).to_dict()
