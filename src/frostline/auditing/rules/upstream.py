"""Which modules have something trainable before them, so that gradients pass through them."""

from __future__ import annotations

from frostline.auditing.subject import Facts, Subject

# The forward hook by which transformers and peft make an embedding's output require a gradient.
_HOOK = "make_inputs_require_grads"


def with_trainable_before(subject: Subject) -> set[int]:
    """Ids of the modules before which a trainable parameter stands, in the order of the model.

    The order in which modules were registered stands for the order in which they run: without a
    run there is no better one.
    """
    found: set[int] = set()
    seen = False
    for facts in subject.modules:
        if seen:
            found.add(id(facts.module))
        seen = seen or _starts_gradients(facts)
    return found


def _starts_gradients(facts: Facts) -> bool:
    own = facts.module._parameters.values()
    if any(parameter is not None and parameter.requires_grad for parameter in own):
        return True
    hooks = facts.module._forward_hooks.values()
    return any(getattr(hook, "__name__", "") == _HOOK for hook in hooks)


def is_eval_while_training(subject: Subject, facts: Facts) -> bool:
    """Whether the module is in eval mode in the steps that train the model."""
    if not subject.model.training:  # an audit between epochs: what counts is the mode after train()
        return not facts.after_train
    return not facts.training
