"""The chapters as plain text, at most 80 columns wide; a line in capitals starts each."""

from __future__ import annotations

import re
import textwrap

import torch

from frostline._results import plural
from frostline.attribution import Attribution, Share
from frostline.demo.branches import Run, Scene
from frostline.demo.document import DocumentStory, Outputs
from frostline.demo.evidence import Counterfactual, Formula, Why
from frostline.demo.ways import WAYS, undoing_line
from frostline.reports.tables import table

Chapter = str


def document(story: DocumentStory) -> Chapter:
    """The document's network, its printed outputs both ways."""
    return "\n".join(
        [
            "1. A FROZEN NETWORK THAT CHANGES",
            "",
            *_paragraph(
                "Two convolutions with norms, three linear layers. requires_grad=False on all"
                f" {story.frozen_parameters} parameters, and no optimizer at all. Each epoch:"
                " model.train(), look at training images, model.eval(), look at one and the same"
                " test image."
            ),
            "",
            "By flag only:",
            *printed(story.flag),
            "",
            "After fl.freeze(model):",
            *printed(story.freeze),
        ]
    )


def branches(hard: Scene, mild: Scene) -> Chapter:
    """Four ways, accuracy and outputs."""
    where, line = undoing_line()
    seeds = plural(len(hard.runs["flag"]), "seed")
    once = hard.first_change("eval_once")
    return "\n".join(
        [
            "2. TWO BRANCHES ON ONE TRUNK, FOUR WAYS TO KEEP ONE OF THEM",
            "",
            *_paragraph(
                "The trunk and the main branch have learned to read digits and are frozen. The"
                " second branch now learns odd from even on inverted digits. Nothing that the"
                f" main branch uses is trained. Its accuracy in percent, median of {seeds},"
                " smallest to largest below; `second` is the new branch at the end:"
            ),
            "",
            accuracies(hard),
            "",
            *_paragraph(
                f"With the second branch on {mild.title} the control's median moves by"
                f" {_largest_move(mild):.1f} points at most, which no accuracy curve would show."
                f" The output {_moves(mild)}:"
            ),
            "",
            accuracies(mild),
            "",
            *_paragraph(
                f"(b) lasts until {where}, which says {line}: the frozen part is in training mode"
                f" again. {_first_drift(once)} (c) is right as long as nobody forgets the line, in"
                " any loop, of any trainer."
            ),
            "",
            "The main branch's output on one fixed test image, on inverted digits, seed 0:",
            *_outputs(hard),
        ]
    )


def why(reasons: Why) -> Chapter:
    """What the flag covers, what moved, and the formula."""
    of, lines, known = formula(reasons.formula)
    return "\n".join(
        [
            "3. WHY",
            "",
            f"Require gradients: {len(reasons.trainable)} parameters, all of the second branch.",
            f"Do not: {reasons.frozen_parameters} parameters of trunk and main branch;"
            f" changed among them: {reasons.frozen_parameters_changed}.",
            "But the state dict holds entries that are no parameters, and those moved:",
            "",
            moved(reasons),
            "",
            "A norm in training mode writes them in every forward pass, whatever the flag",
            f"says. The first training batch, {of}",
            "",
            textwrap.indent(lines, "  "),
            "",
            *_paragraph(known),
        ]
    )


def whose_fault(mended: Counterfactual, fault: Attribution) -> Chapter:
    """The statistics put back alone, and the attribution."""
    bits = (
        "the first one again, bit for bit. Nothing else had changed."
        if mended.same_bits
        else "NOT the first one."
    )
    return "\n".join(
        [
            "4. WHOSE FAULT IT WAS",
            "",
            *_paragraph(
                f"After way (a), put back only the running statistics ({len(mended.put_back)}"
                f" entries): the output on the fixed image is {bits}"
            ),
            f"  before    {_tensor(mended.before)}",
            f"  after     {_tensor(mended.after)}",
            f"  put back  {_tensor(mended.restored)}",
            "",
            *sentence(fault),
            "",
            "fl.attribute(before, after, model, batch):",
            "",
            str(fault),
        ]
    )


def your_turn() -> Chapter:
    """What to type next, in the order of work."""
    return "\n".join(
        [
            "YOUR TURN",
            "",
            "  frostline guard train.py              # your script: what moves though frozen?",
            "",
            "  import frostline as fl",
            "  print(fl.explain(model))              # why: what each module does and writes",
            "  part = fl.freeze(model, fl.FLAGGED)   # make the freeze you wrote hold",
            "  with fl.guard(part):                  # prove that it held, byte by byte",
            "      train(model)                      # your loop, as it is",
        ]
    )


def printed(outputs: Outputs) -> list[str]:
    """Each output as PyTorch prints it."""
    names = ["before ", *(f"epoch {number}" for number in range(1, len(outputs.values)))]
    lines = [f"  {name}  {_tensor(row)}" for name, row in zip(names, outputs.values, strict=True)]
    return [*lines, f"  {change(outputs.first_change)}"]


def change(first: int | None) -> str:
    """When an output changed."""
    return "the same bits after every epoch" if first is None else f"changed in epoch {first}"


def accuracies(scene: Scene) -> str:
    """A row for each way: accuracy before and after each epoch, the second branch, the output."""
    shown = _shown_epochs(scene)
    head = ["way", "before", *(f"epoch {n}" for n in shown[1:]), "second"]
    rows = []
    for way in scene.ways:
        accuracy = scene.accuracy(way.key)
        spreads = [*(accuracy[n] for n in shown), scene.second(way.key)]
        moves = "same bits" if scene.first_change(way.key) is None else "output moves"
        rows += [
            [f"({way.letter}) {way.title}", *(f"{m:.1f}" for m, _, _ in spreads)],
            [f"    {moves}", *(f"{low:.1f}-{high:.1f}" for _, low, high in spreads)],
        ]
    return table(head, rows)


def _shown_epochs(scene: Scene) -> list[int]:
    """At most the first two and the last, so that a line stays within 80 columns."""
    last = len(scene.accuracy(WAYS[0].key)) - 1
    return sorted({0, min(1, last), min(2, last), last})


def moved(reasons: Why) -> str:
    """A row for each entry that is no parameter."""
    rows = [
        [entry.name, f"{entry.changed} of {entry.elements}", f"{entry.by:.4g}"]
        for entry in reasons.moved
    ]
    return table(["entry", "changed", "by up to"], rows)


def formula(numbers: Formula) -> tuple[str, str, str]:
    """The momentum formula with the run's numbers in it: of what, the lines, what to know."""
    m = numbers.momentum
    (mean, seen, mean_new, _), (var, seen_var, var_new, _) = numbers.mean, numbers.variance
    lines = [
        "new = (1 - momentum) * running + momentum * observed",
        f"mean      {1 - m:.4g} * {mean:.6f} + {m:.4g} * {seen:.6f} = {mean_new:.6f}",
        f"variance  {1 - m:.4g} * {var:.6f} + {m:.4g} * {seen_var:.6f} = {var_new:.6f}",
    ]
    known = (
        f"The buffers hold {numbers.mean[3]:.6f} and {numbers.variance[3]:.6f}; over all channels "
        f"formula and buffers differ by at most {numbers.largest_error:.0e}. The observed variance "
        f"is the one over N - 1 = {numbers.values - 1:,}; the batch itself is normalised with the "
        f"one over N, {numbers.biased:.6f}."
    )
    return f"channel {numbers.channel} of {numbers.layer}:", "\n".join(lines), known


def sentence(fault: Attribution) -> list[str]:
    """The attribution in two sentences: the layer that gives back most, the kinds alone."""
    if fault.points is None or not fault.layers:
        return ["Nothing differs, so there is nothing to attribute."]
    best = max(fault.layers, key=lambda share: share.points or 0.0)
    lines = [
        f"Of {_lost(fault.points)}, putting back {best.name}",
        f"alone {returned(best)}.",
    ]
    for share in fault.kinds:
        if share.kind in ("mean", "variance"):
            lines.append(f"Putting back only the {share.kind}s {returned(share)}.")
    return lines


def returned(share: Share) -> str:
    """What a share did for the accuracy, in words."""
    points = share.points or 0.0
    if points > 0:
        return f"returned {points:.1f} points"
    return "changed nothing" if points == 0 else f"made it worse by {-points:.1f} points"


def _lost(points: float) -> str:
    return f"the {points:.1f} points of accuracy lost"


def _first_drift(epoch: int | None) -> str:
    return "Nothing drifted here." if epoch is None else f"The output drifts from epoch {epoch} on."


def _outputs(scene: Scene) -> list[str]:
    told: list[tuple[str, Run]] = []
    lines: list[str] = []
    for way in WAYS:
        run = scene.runs[way.key][0]
        twin = next((title for title, other in told if other.outputs == run.outputs), None)
        told.append((f"({way.letter})", run))
        lines += ["", f"({way.letter}) {way.title}"]
        lines += [f"  the same numbers as {twin}, bit for bit"] if twin else printed(run.outputs)
    return lines


def _moves(scene: Scene) -> str:
    first = scene.first_change(WAYS[0].key)
    return "stays as it is" if first is None else "is another one all the same"


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, 78, break_long_words=False, break_on_hyphens=False)


def _tensor(values: list[float]) -> str:
    """As PyTorch prints it, wrapped to what is left of 80 columns."""
    line = re.sub(r"\n\s+", " ", str(torch.tensor([values])))
    return "\n".join(textwrap.wrap(line, 67, subsequent_indent=" " * 20))


def _largest_move(scene: Scene) -> float:
    medians = [median for median, _, _ in scene.accuracy(WAYS[0].key)]
    return max(abs(median - medians[0]) for median in medians)
