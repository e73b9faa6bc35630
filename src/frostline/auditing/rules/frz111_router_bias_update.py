"""# router-bias-update (FRZ111)

## What it does
Finds buffers of frozen routers that balance experts: ``expert_bias`` and
``e_score_correction_bias``. An error if a step changes them now; a warning if the optimizer has a
step hook of somebody's and no step was run; else info, since training loops may move them.

## Why is this bad?
Balancing without an auxiliary loss moves this bias after each step by how often each expert was
chosen. That happens in a hook of the optimizer, outside the forward and outside autograd, over all
routers of the model, frozen ones included. Tokens then go to other experts: adapters on a frozen
mixture of experts train on a base that drifts.

## Example
```python
import torch, frostline as fl

class Router(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
        self.register_buffer("expert_bias", torch.zeros(2))

    def forward(self, x):
        return (super().forward(x) + self.expert_bias).softmax(-1)

model = torch.nn.Sequential(Router(), torch.nn.Linear(2, 1))
model[0].requires_grad_(False)
optimizer = torch.optim.AdamW(model[1].parameters())
hook = optimizer.register_step_pre_hook(lambda *_: model[0].expert_bias.add_(0.01))
report = fl.audit(model, optimizer=optimizer, batch=torch.randn(4, 4))
assert "FRZ111" in {finding.code for finding in report.findings}
```

## Use instead
```python
hook.remove()
assert fl.audit(model, optimizer=optimizer, batch=torch.randn(4, 4)).ok
```
Or let the hook pass by routers whose weight has ``requires_grad=False``.

## Fix safety
There is no code that mends this from outside: a hook may do other things as well.

## Known problems
Without a run the hook is not read: any step hook on the optimizer counts. Updates that a training
loop makes by a call of its own, between the steps, are not part of a step.

## References
- torchtitan: ``_update_expert_bias`` in a step pre-hook, over all layers
- prime-rl#2953: updates of the router's bias
- Wang et al., Auxiliary-Loss-Free Load Balancing, 2024; DeepSeek-V3, 2024
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import Optimizer

from frostline._names import join
from frostline.auditing.finding import Severity
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject


def is_router_bias(name: str) -> bool:
    """Whether a buffer of this name balances experts."""
    last = name.rpartition(".")[2]
    return last == "e_score_correction_bias" or "expert_bias" in last


def check(subject: Subject) -> Iterator[Sighting]:
    """Balancing biases of frozen routers."""
    hook = _step_hook(subject.optimizer)
    for facts in subject.frozen_modules():
        for name, buffer in facts.module._buffers.items():
            if buffer is not None and is_router_bias(name):
                yield _seen(facts, name, *_told(subject, id(buffer), hook))


def _told(subject: Subject, key: int, hook: str) -> tuple[Severity, str]:
    if key in subject.now.changed:
        by = subject.now.writers.get(key, "")
        return "error", f"is changed by a training step{f', by {by}' if by else ''}"
    if key in subject.now.undecided:
        return "warning", "may be changed by a training step"
    if hook and subject.now.how != "measured":
        return "warning", f"balances experts; the optimizer has a step hook, {hook}"
    return "info", "balances experts; training loops move it outside the forward"


def _step_hook(optimizer: Optimizer | None) -> str:
    """The name of a hook around the step of this optimizer, or an empty string."""
    if optimizer is None:
        return ""
    hooks = (
        *optimizer._optimizer_step_pre_hooks.values(),
        *optimizer._optimizer_step_post_hooks.values(),
    )
    theirs = [hook for hook in hooks if not _is_known(hook)]
    return getattr(theirs[0], "__qualname__", type(theirs[0]).__name__) if theirs else ""


def _is_known(hook: object) -> bool:
    module = getattr(hook, "__module__", "") or ""
    return module.split(".")[0] in ("frostline", "torch")


def _seen(facts: Facts, name: str, severity: Severity, what: str) -> Sighting:
    full = join(facts.name, name)
    mend = (
        "# remove the hook that moves it (the handle that register_step_pre_hook gave has\n"
        "# .remove()), or let it pass by routers whose weight has requires_grad=False"
    )
    moved = (full,) if severity != "info" else ()
    return Sighting(full, severity, f"{name} {what}"[:120], mend, moved)


RULE = Rule(code="FRZ111", name="router-bias-update", check=check)
