"""Failure modes that no audit of a model, an optimizer and a batch can see, and why."""

UNTOLD: dict[int, str] = {
    19: "the norm was exchanged before, and what the old one computed is not there to compare with",
    23: "an exchanged norm that disagrees with mixed precision raises, or differs, where it runs",
    30: "schedulers and saved optimizer states are no part of what is audited",
    35: "an optimizer that needs every gradient raises in its first step, and says so itself",
    36: "rows are written back by the loop after the step, which an audit does not see",
    62: "a cast is a wanted change: `part.changes()` reports it as one",
    64: "packed low-bit weights are averaged by code that runs later",
    70: "that a freeze saves nothing is no change; `fl.summary` says what a step takes",
    73: "replicas exist on several GPUs only",
    74: "FSDP1 raises when it wraps; what it flattened is no longer there to be read",
    75: "DeepSpeed's checkpoints are files",
    76: "which graph a compiler takes up again is known when it runs",
    78: "distributed checkpoints are files",
    80: "a detector's failure, and not a set-up's",
    81: "a habit: nobody looked",
    83: "a habit: nothing printed what is frozen; `print(part)` does",
}
