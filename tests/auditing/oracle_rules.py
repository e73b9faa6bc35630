"""Whether what a finding says is true, from the set-up itself and from one real step.

Nothing here asks the code of a rule. A finding that names tensors as an error is right if each of
them changed in the step; what else findings say is looked up in the model, or tried on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline._batches import tensors_in
from frostline._names import named_modules, named_tensors
from frostline.auditing.finding import Finding
from tests.auditing.oracle import Built, SetUp
from tests.auditing.oracle_truth import Truth, same_bytes


@dataclass(eq=False)
class Evidence:
    """A set-up, what its step did now, and what it did after `model.train()`."""

    setup: SetUp
    now: Truth
    after: Truth

    def __post_init__(self) -> None:
        self.built: Built = self.setup.build()
        self.modules = dict(reversed(named_modules(self.built.model)))

    def module(self, finding: Finding) -> nn.Module:
        """The module that a finding is about, or that holds the tensor that it is about."""
        name = finding.where
        return self.modules[name] if name in self.modules else self.modules[name.rpartition(".")[0]]

    def tensors(self, finding: Finding) -> list[Tensor]:
        """The tensors that it names; else those at or below its place."""
        entries = named_tensors(self.built.model)
        if finding.tensors:
            return [e.tensor for e in entries if e.name in finding.tensors]
        return [e.tensor for e in entries if _below(e.name, finding.where)]

    def stepped(self) -> list[Tensor]:
        groups = self.built.optimizer.param_groups if self.built.optimizer else []
        return [p for group in groups for p in group["params"]]


def _below(name: str, where: str) -> bool:
    return not where or name == where or name.startswith(f"{where}.")


def is_right(finding: Finding, evidence: Evidence) -> bool:
    """Whether what the finding says is true."""
    if finding.code in _TRUTHS:
        return _TRUTHS[finding.code](finding, evidence)
    return _changed(finding, evidence)


def _changed(finding: Finding, evidence: Evidence) -> bool:
    return bool(finding.tensors) and set(finding.tensors) <= evidence.now.changed


def _only_after_train(finding: Finding, evidence: Evidence) -> bool:
    named = set(finding.tensors)
    return bool(named) and named <= evidence.after.changed and not named & evidence.now.changed


def _self_writing(finding: Finding, evidence: Evidence) -> bool:
    """An error names what changed; a warning, a module whose tensors may change in either mode."""
    if finding.severity == "error":
        return _changed(finding, evidence)
    may = evidence.now.changed | evidence.after.changed
    return bool(set(finding.tensors) & may)


def _shared(finding: Finding, evidence: Evidence) -> bool:
    """An error names what changed; a warning, what looks at memory of something trainable."""
    if finding.severity == "error":
        return _changed(finding, evidence)
    trained = {
        p.untyped_storage().data_ptr() for p in evidence.built.model.parameters() if p.requires_grad
    }
    return all(t.untyped_storage().data_ptr() in trained for t in evidence.tensors(finding))


def _flag_on_module(finding: Finding, evidence: Evidence) -> bool:
    module = evidence.module(finding)
    return "requires_grad" in vars(module) and any(p.requires_grad for p in module.parameters())


def _misspelt(finding: Finding, evidence: Evidence) -> bool:
    return any(
        "require_grad" in vars(t) for t in evidence.tensors(finding)
    ) or "require_grad" in vars(evidence.module(finding))


def _claimed_but_trainable(finding: Finding, evidence: Evidence) -> bool:
    found = evidence.tensors(finding)
    names = set(finding.tensors) or {finding.where}
    return bool(found) and all(t.requires_grad for t in found) and names <= evidence.now.frozen


def _partly_frozen(finding: Finding, evidence: Evidence) -> bool:
    module = evidence.module(finding)
    own = {p.requires_grad for p in module.parameters(recurse=False)}
    below = {p.requires_grad for child in module.children() for p in child.parameters()}
    return own == {True, False} or (True in own and False in below)


def _stale(finding: Finding, evidence: Evidence) -> bool:
    stale = [t for t in evidence.tensors(finding) if t.is_leaf and t.grad is not None]
    if not stale or any(t.requires_grad for t in stale):
        return False
    if finding.severity == "error":
        return bool(set(finding.tensors) & evidence.now.changed)
    return not set(finding.tensors) & evidence.now.changed


def _nothing_trainable(finding: Finding, evidence: Evidence) -> bool:
    return not any(p.requires_grad for p in evidence.built.model.parameters())


def _identity(finding: Finding, evidence: Evidence) -> bool:
    norm: Any = evidence.module(finding)
    return bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all())


def _stuck(finding: Finding, evidence: Evidence) -> bool:
    model = evidence.setup.build().model
    model.eval()
    return dict(reversed(named_modules(model)))[finding.where].training


def _patched(finding: Finding, evidence: Evidence) -> bool:
    return not {"train", "eval"}.isdisjoint(vars(evidence.module(finding)))


def _router(finding: Finding, evidence: Evidence) -> bool:
    named = finding.tensors or (finding.where,)
    words = ("expert_bias", "e_score_correction_bias")
    return all(any(word in name for word in words) for name in named) and (
        finding.severity != "error" or _changed(finding, evidence)
    )


def _recurrent(finding: Finding, evidence: Evidence) -> bool:
    module = evidence.module(finding)
    return isinstance(module, nn.RNNBase) and not module.training


def _checkpointing(finding: Finding, evidence: Evidence) -> bool:
    module: Any = evidence.module(finding)
    return bool(module.gradient_checkpointing) and not module.training


def _inert(finding: Finding, evidence: Evidence) -> bool:
    stepped = {id(p) for p in evidence.stepped()}
    named = [t for t in evidence.tensors(finding) if id(t) in stepped and not t.requires_grad]
    still = [t for t in named if t.grad is None]
    return bool(still) and not set(finding.tensors) & evidence.now.changed


def _in_no_group(finding: Finding, evidence: Evidence) -> bool:
    stepped = {id(p) for p in evidence.stepped()}
    own = evidence.module(finding).parameters(recurse=False)
    return any(p.requires_grad and id(p) not in stepped for p in own)


def _foreign(finding: Finding, evidence: Evidence) -> bool:
    own = {id(p) for p in evidence.built.model.parameters()}
    return any(id(p) not in own for p in evidence.stepped())


def _not_reached(finding: Finding, evidence: Evidence) -> bool:
    named = {
        e.name
        for e in named_tensors(evidence.built.model)
        if isinstance(e.tensor, nn.Parameter) and e.tensor.requires_grad
        and (e.name in finding.tensors if finding.tensors else _below(e.name, finding.where))
    }  # fmt: skip
    reached = evidence.now.reached
    return bool(named - reached) and (not finding.tensors or not named & reached)


def _tied(finding: Finding, evidence: Evidence) -> bool:
    """Whether a tensor that it names stands at several places."""
    places: dict[int, set[str]] = {}
    for entry in named_tensors(evidence.built.model):
        places.setdefault(id(entry.tensor), set()).add(entry.name)
    named = {*finding.tensors, finding.where}
    return any(len(found) > 1 and found & named for found in places.values())


def _outside_of_the_checkpoint(finding: Finding, evidence: Evidence) -> bool:
    named = set(finding.tensors) or {finding.where}
    saved = set(evidence.built.model.state_dict())
    return named <= evidence.now.changed | evidence.after.changed and not named & saved


def _norms_of_the_batch(finding: Finding, evidence: Evidence) -> bool:
    norms = [
        m for m in evidence.built.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    return any(norm.training or norm.running_mean is None for norm in norms)


def _one_value(finding: Finding, evidence: Evidence) -> bool:
    return "Expected more than 1" in evidence.now.raised + evidence.after.raised


def _counted_twice(finding: Finding, evidence: Evidence) -> bool:
    counts = (*evidence.now.counted.items(), *evidence.after.counted.items())
    return any(n > 1 and _below(name, finding.where) for name, n in counts)


# --- what has to be tried ------------------------------------------------------------------------


def _calls(
    evidence: Evidence, where: str, mode: bool | None
) -> Iterator[tuple[nn.Module, Any, Any]]:
    """The module with the inputs of its first call, in a mode; None is the mode of now."""
    built = evidence.setup.build()
    if mode is not None:
        built.model.train(mode)
    module = dict(reversed(named_modules(built.model)))[where]
    caught: list[tuple[Any, Any]] = []

    def catch(_: nn.Module, args: Any, kwargs: Any) -> None:
        caught.append((args, kwargs))

    handle = module.register_forward_pre_hook(catch, with_kwargs=True)
    # What raises later in the forward, as a norm that gets one value, was called all the same.
    with suppress(Exception), torch.no_grad():
        built.loss(built.model, built.batch)
    handle.remove()
    for args, kwargs in caught[:1]:
        yield module, args, kwargs


def _output(module: nn.Module, args: Any, kwargs: Any, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return next(iter(tensors_in(module(*args, **kwargs)))).clone()


def _draws(modes: tuple[bool | None, ...]) -> Callable[[Finding, Evidence], bool]:
    """Whether two runs on the same input differ, in one of the modes."""

    def judge(finding: Finding, evidence: Evidence) -> bool:
        for mode in modes:
            for module, args, kwargs in _calls(evidence, finding.where, mode):
                first = _output(module, args, kwargs)
                if any(
                    not same_bytes(first, _output(module, args, kwargs, s)) for s in range(1, 9)
                ):
                    return True
        return False

    return judge


def _couples(finding: Finding, evidence: Evidence) -> bool:
    """Whether the first sample's output depends on the other samples, now or after train."""
    for mode in (None, True):
        for module, args, kwargs in _calls(evidence, finding.where, mode):
            if not args or not isinstance(args[0], Tensor):
                continue
            inputs = args[0] if len(args[0]) > 1 else torch.cat([args[0], args[0]])
            other = inputs.clone()
            other[1:] = other[1:].flip(0) if not other.is_floating_point() else other[1:] * 3 + 1
            one, two = (_output(module, (x, *args[1:]), kwargs) for x in (inputs, other))
            if not torch.allclose(one[0], two[0], rtol=1e-4, atol=1e-5):
                return True
    return False


def _by_mode(finding: Finding, evidence: Evidence) -> bool:
    """Whether the module gives something else in training mode; a list, whether one in it does."""
    module = evidence.module(finding)
    names = [finding.where]
    if isinstance(module, nn.ModuleList):
        names = [f"{finding.where}.{key}" for key, _ in module.named_children()]
    return any(_differs_by_mode(evidence, name) for name in names)


def _differs_by_mode(evidence: Evidence, name: str) -> bool:
    for module, args, kwargs in _calls(evidence, name, False):
        evaluated = _output(module, args, kwargs)
        module.train()
        try:
            outputs = [_output(module, args, kwargs, seed) for seed in range(4)]
        except ValueError:  # more than one value per channel is expected
            return True
        return any(not same_bytes(evaluated, output) for output in outputs)
    return False


_TRUTHS: dict[str, Callable[[Finding, Evidence], bool]] = {
    "FRZ001": _flag_on_module,
    "FRZ002": _misspelt,
    "FRZ003": _claimed_but_trainable,
    "FRZ004": _partly_frozen,
    "FRZ005": _stale,
    "FRZ006": _nothing_trainable,
    "FRZ007": _identity,
    "FRZ102": _only_after_train,
    "FRZ103": _draws((None, True)),
    "FRZ105": _couples,
    "FRZ108": _self_writing,
    "FRZ109": _stuck,
    "FRZ110": _patched,
    "FRZ111": _router,
    "FRZ112": _recurrent,
    "FRZ113": _checkpointing,
    "FRZ201": _inert,
    "FRZ202": _in_no_group,
    "FRZ204": _foreign,
    "FRZ207": _not_reached,
    "FRZ301": _tied,
    "FRZ302": _shared,
    "FRZ401": _outside_of_the_checkpoint,
    "FRZ501": _norms_of_the_batch,
    "FRZ502": _one_value,
    "FRZ503": _couples,
    "FRZ504": _counted_twice,
    "FRZ601": _draws((False,)),
    "FRZ602": _by_mode,
}
