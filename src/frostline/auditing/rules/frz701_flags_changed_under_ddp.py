"""# flags-changed-under-ddp (FRZ701)

## What it does
Finds models in DistributedDataParallel of which other parameters are trainable now than when they
were wrapped. The number of parameters that its reducer was built over is compared with the number
that it would be built over now, and parameters that are not the objects of then are looked for.

## Why is this bad?
The reducer is built once. It waits for gradients of parameters that were frozen since ("Expected to
have finished reduction in the prior iteration"), and knows nothing of those that became trainable:
their gradients differ from rank to rank, and soon the models do.

## Example
```python
import torch, torch.distributed as dist, frostline as fl

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
model = torch.nn.parallel.DistributedDataParallel(net)
net[0].requires_grad_(False)
assert "FRZ701" in {finding.code for finding in fl.audit(model).findings}
```

## Use instead
```python
model = torch.nn.parallel.DistributedDataParallel(net)  # freeze first, wrap afterwards
assert fl.audit(model).ok
dist.destroy_process_group()
```

## Fix safety
There is no code that mends this in general: the wrapper is made in the training script, and the
optimizer and the compiled model that know it are, too.

## Known problems
As many parameters frozen as were unfrozen go unseen, if the objects stayed.

## References
- pytorch#22049, pytorch#45325, OpenGait#230, mmengine#767, fast-reid#178
- torch.nn.parallel.DistributedDataParallel: never change parameters after wrapping
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.parallel import DistributedDataParallel

from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each wrapper."""
    for facts in subject.modules:
        if isinstance(facts.module, DistributedDataParallel):
            message = _difference(facts.module)
            if message:
                yield Sighting(
                    facts.name,
                    "error",
                    message,
                    "# freeze first, wrap afterwards:\n"
                    "#   model = torch.nn.parallel.DistributedDataParallel(net)",
                )


def _difference(wrapper: DistributedDataParallel) -> str:
    if wrapper.logger is None:  # it is being unpickled
        return ""
    trainable = [
        parameter
        for name, parameter in wrapper.module.named_parameters()
        if parameter.requires_grad and name not in wrapper.parameters_to_ignore
    ]
    known = {id(parameter) for parameter in wrapper._module_parameters}
    strange = sum(id(parameter) not in known for parameter in trainable)
    if strange:
        return f"{plural(strange, 'trainable parameter')} came after it was wrapped"
    then = wrapper.logger._get_ddp_logging_data().ints_map["num_parameter_tensors"]
    if then == len(trainable):
        return ""
    return f"wrapped when {plural(then, 'parameter')} could be trained; now {len(trainable):,} can"


RULE = Rule(code="FRZ701", name="flags-changed-under-ddp", check=check)
