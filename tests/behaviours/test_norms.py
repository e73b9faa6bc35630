"""What is said of a norm equals what it does: every setting is run and compared."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from frostline.behaviours import Doing, behaviour
from tests.behaviours.formulas import evaluate
from tests.behaviours.norm_cases import (
    PER_SAMPLE,
    STATISTICS,
    TRACKING,
    Case,
    per_sample_cases,
    tracking_cases,
)

TOLERANCE = 1e-12


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def close(actual: Tensor, expected: Tensor) -> bool:
    scale = 1 + expected.abs().max()
    return bool((actual - expected).abs().max() <= TOLERANCE * scale)


# --- the slow obvious way --------------------------------------------------------------------


def dimensions(case: Case, norm: nn.Module, doing: Doing) -> tuple[Tensor, Tensor]:
    """Mean and variance that are claimed to be used, in a shape that fits the input; from N."""
    x = case.inputs()
    if doing.statistics == "running":
        shape = [1, -1] + [1] * (x.dim() - 2)
        return norm.running_mean.reshape(shape), norm.running_var.reshape(shape)  # type: ignore[operator, return-value]
    if doing.statistics == "group":
        grouped = x.reshape(x.shape[0], norm.num_groups, -1)  # type: ignore[arg-type]
        each = [grouped.mean(2), grouped.var(2, correction=0)]
        per = x.shape[1] // norm.num_groups  # type: ignore[operator]
        mean, var = (
            s.repeat_interleave(per, 1).reshape(*x.shape[:2], *[1] * (x.dim() - 2)) for s in each
        )
        return mean, var
    over = {
        "batch": [d for d in range(x.dim()) if d != 1],
        "instance": list(range(2, x.dim())),
        "sample": [-1, -2] if "two" in case.layer else [-1],
    }[str(doing.statistics)]
    return x.mean(over, keepdim=True), x.var(over, correction=0, keepdim=True)


def outputs(case: Case, norm: nn.Module, doing: Doing) -> Tensor:
    """The output by the formula that is shown."""
    x = case.inputs()
    names: dict[str, Tensor] = {"x": x}
    if "mean(x^2)" in doing.symbols:
        names["mean(x^2)"] = (x**2).mean(-1, keepdim=True)
    else:
        mean, var = dimensions(case, norm, doing)
        running = doing.statistics == "running"
        names["running_mean" if running else "mean"] = mean
        names["running_var" if running else "var"] = var
    per_channel = doing.statistics != "sample"
    for name in ("weight", "bias"):
        own = getattr(norm, name, None)
        if own is not None:
            shape = [1, -1] + [1] * (x.dim() - 2) if per_channel else own.shape
            names[name] = own.detach().reshape(shape)
    return evaluate(doing.symbols, names)


def inputs_of_formulas(case: Case) -> dict[str, Tensor]:
    """What the formulas of the running statistics speak of, variances from N - 1."""
    x = case.inputs()
    batch = [d for d in range(x.dim()) if d != 1]
    found = {"batch mean": x.mean(batch), "batch variance (n-1)": unbiased(x, batch)}
    if x.dim() > 2:
        positions = list(range(2, x.dim()))
        found["mean of the samples' means"] = x.mean(positions).mean(0)
        found["mean of the samples' variances (n-1)"] = unbiased(x, positions).mean(0)
    return found


def unbiased(x: Tensor, over: list[int]) -> Tensor:
    """The variance from n - 1; infinite or nan for a single value, of which torch would warn."""
    deviations = x - x.mean(over, keepdim=True)
    return (deviations**2).sum(over) / torch.tensor(x.numel() / deviations.sum(over).numel() - 1)


def too_few(case: Case, norm: nn.Module, doing: Doing) -> bool:
    positions = 1
    for size in case.shape[2:]:
        positions *= size
    values = {
        None: 2,
        "channel": case.shape[0] * positions,
        "channel of a sample": positions,
        "group in the batch": case.shape[0]
        * positions
        * case.shape[1]
        // int(getattr(norm, "num_groups", 1)),  # type: ignore[arg-type]
    }[doing.needs_two]
    return values < 2


# --- the comparison --------------------------------------------------------------------------


def run(norm: nn.Module, x: Tensor) -> Tensor | Exception:
    try:
        return norm(x).detach()  # type: ignore[no-any-return]
    except ValueError as error:
        return error


def mistakes(case: Case) -> list[str]:
    """Everything in which the words and the layer differ."""
    net, part = case.build()
    norm = net.norm
    said = behaviour(norm)
    assert said is not None
    doing = said.now
    before = {name: t.detach().clone() for name, t in norm.state_dict().items()}
    expected = new_values(case, doing, before)
    claimed = None if too_few(case, norm, doing) else outputs(case, norm, doing)
    output = run(norm, case.inputs())
    found = []
    raised = isinstance(output, Exception)
    if raised is not (claimed is None):
        return [f"raises: said {claimed is None}, is {raised}"]
    if claimed is not None and isinstance(output, Tensor) and not close(output, claimed):
        found.append("output")
    after = {name: t.detach() for name, t in norm.state_dict().items()}
    changed = {name for name in before if bits(before[name]) != bits(after[name])}
    writes = {w.tensor for w in doing.writes if w.even_if_it_raises or not raised}
    sure = {w.tensor for w in doing.writes if w.tensor in writes and not w.only_rounding}
    if not sure <= changed <= writes:
        found.append(f"changed {sorted(changed)}, said {sorted(writes)}")
    found += [f"value of {n}" for n in writes if not close(after[n].double(), expected[n])]
    if (case.hold is not None and case.hold != "update") is not said.held and case.track:
        found.append("held")
    assert part is None or part.ok or case.hold == "update"
    return found


def new_values(case: Case, doing: Doing, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name: t.double() for name, t in before.items()} | inputs_of_formulas(case)
    return {write.tensor: evaluate(write.formula, names) for write in doing.writes}


@pytest.mark.parametrize("layer", TRACKING, ids=lambda layer: layer.__name__)
def test_layers_with_running_statistics(layer: type[nn.Module]) -> None:
    wrong = {case: found for case in tracking_cases(layer) if (found := mistakes(case))}
    assert wrong == {}


@pytest.mark.parametrize("momentum", [0.0, None])
def test_without_momentum_instance_norm_moves_by_rounding(momentum: float | None) -> None:
    """It averages over as many copies of its statistics as there are samples."""
    moved = {}
    for samples in (1, 2, 3, 4, 7):
        norm = nn.InstanceNorm1d(64, momentum=momentum, track_running_stats=True)
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        before = norm.running_mean.clone()
        norm(torch.randn(samples, 64, 5))
        moved[samples] = bits(before) != bits(norm.running_mean)
        assert torch.allclose(before, norm.running_mean, rtol=1e-6)
    assert moved == {1: False, 2: False, 3: True, 4: False, 7: True}
    said = behaviour(norm)
    assert said is not None
    assert all(write.only_rounding for write in said.now.writes)
    assert len(said.now.writes) == 2


@pytest.mark.parametrize("layer", PER_SAMPLE)
def test_layers_without(layer: str) -> None:
    for case in per_sample_cases(layer):
        assert mistakes(case) == []
        net, _ = case.build()
        norm = net.norm
        said = behaviour(norm)
        assert said is not None
        assert said.same_in_both
        assert said.now.writes == ()
        assert not set(STATISTICS) & set(norm.state_dict())


@pytest.mark.slow
def test_the_page_is_what_is_said() -> None:
    """Slow, since it asks about every setting again; a change of words is seen by the one below."""
    from tests.behaviours.norm_table import PAGE, page

    assert PAGE.read_text() == page(), "python tests/behaviours/norm_table.py writes it"


def test_the_page_has_every_formula() -> None:
    from tests.behaviours.norm_table import PAGE, outcome

    text = PAGE.read_text()
    for layer in (nn.BatchNorm2d, nn.InstanceNorm1d):
        for momentum in (None, 0.0, 0.1, 1.0):
            norm = layer(2, momentum=momentum, track_running_stats=True)
            for training in (True, False):
                said = behaviour(norm.train(training))
                assert said is not None
                assert all(part in text for part in outcome(said.now))
