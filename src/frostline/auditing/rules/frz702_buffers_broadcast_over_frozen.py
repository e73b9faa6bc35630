"""# buffers-broadcast-over-frozen (FRZ702)

## What it does
Finds DistributedDataParallel that sends buffers of rank 0 to all ranks before each forward, the
frozen ones included.

## Why is this bad?
Frozen buffers are equal on all ranks, so the bytes stay. But they are written: two forwards before
a backward raise "modified by an inplace operation", version counters say that something happened,
and where one rank did differ, nobody learns of it.

## Example
```python
import torch, torch.distributed as dist, frostline as fl

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
net[0].running_var.fill_(2.0)
fl.freeze(net, "0")
model = torch.nn.parallel.DistributedDataParallel(net)
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ702"]
```

## Use instead
```python
model = torch.nn.parallel.DistributedDataParallel(net, forward_sync_buffers=False)
assert fl.audit(model).findings == ()
dist.destroy_process_group()
```

## Fix safety
Unsafe where other buffers move: statistics of trainable norms then differ between ranks.

## References
- pytorch#22095, pytorch#65907, pytorch#110363, pytorch#175024
- STARK#15, which gives this as its reason for a norm without statistics
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
        wrapper = facts.module
        if not isinstance(wrapper, DistributedDataParallel) or not wrapper.broadcast_buffers:
            continue
        ignored = wrapper.parameters_to_ignore
        sent = [buffer for name, buffer in wrapper.module.named_buffers() if name not in ignored]
        frozen = sum(map(subject.is_frozen, sent))
        if frozen:
            yield Sighting(
                facts.name,
                "info",
                f"each forward writes {plural(frozen, 'frozen buffer')} with the values of rank 0",
                f"{_wrapper(facts.name)}.broadcast_buffers = False",
            )


def _wrapper(name: str) -> str:
    return f"model.get_submodule({name!r})" if name else "model"


RULE = Rule(code="FRZ702", name="buffers-broadcast-over-frozen", check=check)
