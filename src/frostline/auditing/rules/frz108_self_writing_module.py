"""# self-writing-module (FRZ108)

## What it does
Finds modules in the frozen part whose own code writes to their tensors in the forward, where no
other rule has a name for it: codebooks that follow their inputs by moving averages, queues of keys,
call counters, caches, initialisation by the first batch. It is an error where a step changes a byte
of them, and a warning where that is undecided, since only the code was read. It is an error, too,
where a frozen part holds such a module in vain, and therefore raises at its first forward.

## Why is this bad?
The frozen part remembers what it sees, so that it gives other outputs later. Buffers, and what is
written through ``.data`` or under ``no_grad``, do not ask for ``requires_grad``. Eval mode helps
only where the code asks for it, and ``model.train()`` undoes that.

## Example
```python
import torch, frostline as fl

class Centre(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x - self.mean

trunk = torch.nn.Sequential(torch.nn.Linear(2, 2), Centre())
model = torch.nn.Sequential(trunk, torch.nn.Linear(2, 1))
model[0].requires_grad_(False)
report = fl.audit(model, batch=torch.randn(4, 2))
assert "FRZ108" in {finding.code for finding in report.findings}
assert report.will_change == ("0.1.mean",)
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model, batch=torch.randn(4, 2)).ok
```
For code that writes in every mode, say how it is held: ``frostline.freezing.register_holder``.

## Fix safety
Safe where the code asks for the mode: it then runs as in evaluation. A frozen part compares the
first forward of such a module, and raises if it wrote all the same.

## Known problems
Without a batch the code is read and not run. That it writes only under some condition of its own is
not seen, and neither are writes by functions that get the tensor as an argument.

## References
- vector-quantize-pytorch#42, #68, #93, #167, and GPT-SoVITS PR#953: a frozen codebook that moved
- van den Oord et al., Neural Discrete Representation Learning, 2017, appendix A.1
- He et al., Momentum Contrast, 2020; Kingma and Dhariwal, Glow, 2018 (ActNorm)
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.finding import Severity
from frostline.auditing.measuring.raising import place_in
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.frz111_router_bias_update import is_router_bias
from frostline.auditing.rules.mechanisms import written_by
from frostline.auditing.subject import Facts, Subject

# As the error of a frozen part says it.
_HELD_AND_WRITES = "wrote to it although the module is held"


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen modules that write to themselves by their own code."""
    found: dict[int, tuple[Facts, tuple[str, ...], Severity]] = {}
    for facts, names, severity in written_by(subject, "own code"):
        found[id(facts.module)] = facts, names, severity
    for facts, more in _changed_state(subject):
        known = found.get(id(facts.module), (facts, (), "error"))[1]
        found[id(facts.module)] = facts, tuple(dict.fromkeys([*known, *more])), "error"
    for facts in _refused(subject):
        found.pop(id(facts.module), None)
        yield _held_in_vain(facts)
    for facts, names, severity in found.values():
        mine = tuple(name for name in names if not is_router_bias(name))
        if mine:
            yield _seen(subject, facts, mine, severity)


def _changed_state(subject: Subject) -> Iterator[tuple[Facts, list[str]]]:
    """Frozen modules whose code writes, with all of their buffers that a step changes now.

    What a function writes that gets a tensor as an argument is not seen in the code, and neither is
    the mode in which it writes.
    """
    owned: dict[int, list[str]] = {}
    for key in subject.now.changed & subject.claim.tensors.keys():
        entry = subject.claim.tensors[key]
        if entry.kind != "parameter":
            owned.setdefault(id(entry.owner), []).append(entry.name)
    for key, names in owned.items():
        facts = subject.by_module.get(key)
        if facts is not None and facts.frozen and _writes(facts):
            yield facts, sorted(names)


def _refused(subject: Subject) -> Iterator[Facts]:
    """The held module that wrote all the same, so that the frozen part ended the step."""
    raised = subject.now.raised or subject.after_train.raised
    if _HELD_AND_WRITES in raised:
        place = place_in(raised)
        yield from (facts for facts in subject.frozen_modules() if facts.name == place)


def _held_in_vain(facts: Facts) -> Sighting:
    message = f"the forward of {facts.kind} writes to itself although it is held, which raises"
    return Sighting(facts.name, "error", message, _holder(facts))


def _writes(facts: Facts) -> bool:
    doing = [d for d in (facts.doing(True), facts.doing(False)) if d is not None]
    return any(write.by == "own code" for one in doing for write in one.writes)


def _seen(subject: Subject, facts: Facts, names: tuple[str, ...], severity: Severity) -> Sighting:
    in_eval = facts.doing(False)
    always = in_eval is not None and bool(in_eval.writes)
    mode = "every" if always else "training" if facts.training else "eval"
    short = [name.rpartition(".")[2] for name in names]
    listed = ", ".join(short[:3]) + (f" and {len(short) - 3} more" if len(short) > 3 else "")
    verb = "writes" if severity == "error" else "may write"
    message = f"its forward {verb} {listed} in {mode} mode, by the code of {facts.kind}"
    mend = subject.freezing(facts) if mode == "training" else _holder(facts)
    return Sighting(facts.name, severity, message[:120], mend, names)


def _holder(facts: Facts) -> str:
    cls = facts.kind
    return (
        f"# eval mode does not keep {cls} from it. Say what a frozen one computes, then freeze:\n"
        f"#   def held(module, x): ...  # the output, nothing written\n"
        f"#   frostline.freezing.register_holder({cls}, held)"
    )


RULE = Rule(code="FRZ108", name="self-writing-module", check=check)
