"""# adapter-rewrites-base (FRZ404)

## What it does
Finds PEFT adapters whose initialisation subtracts something from the weights of the base: PiSSA,
OLoRA, CorDA, LoftQ, LoRA-GA.

## Why is this bad?
The base weights are others than those that were loaded, although they are frozen. The adapter fits
only onto the rewritten ones: a second adapter on the same model, an adapter that is switched off,
and a checkpoint that is loaded onto the original base all meet the wrong weights.

## Example
```python
import torch, frostline as fl
from peft import LoraConfig, get_peft_model

base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
config = LoraConfig(r=2, target_modules=["0"], init_lora_weights="pissa")
model = get_peft_model(base, config)
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ404"]
```

## Use instead
```python
base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
assert fl.audit(model).ok
```
Or save the adapter with ``path_initial_model_for_weight_conversion``, which turns it into one for
the original base.

## Fix safety
There is no code that mends this in general: the base has been rewritten; load it again.

## References
- peft#1626, peft#1828: base weights that an initialisation changes
- Meng et al., PiSSA, 2024; Li et al., LoftQ, 2023; Yang et al., CorDA, 2024
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.adapters import configurations
from frostline.auditing.subject import Subject

_REWRITE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each adapter."""
    for where, name, configuration in configurations(subject):
        way = getattr(configuration, "init_lora_weights", None)
        if isinstance(way, str) and way.lower().startswith(_REWRITE):
            yield Sighting(
                where,
                "warning",
                f"adapter {name[:30]!r} began by rewriting the frozen base: "
                f"init_lora_weights={way[:30]!r}",
                "# keep the base as it was loaded:\n#   LoraConfig(..., init_lora_weights=True)",
            )


RULE = Rule(code="FRZ404", name="adapter-rewrites-base", check=check)
