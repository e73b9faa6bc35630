"""What rules of parameters, optimizers, sharing and resuming say: severities, places, tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import frostline as fl
from frostline.auditing.finding import Finding
from tests.auditing.cases import Case
from tests.auditing.rules import (
    frz001,
    frz002,
    frz003,
    frz004,
    frz005,
    frz101,
    frz203,
    frz204,
    frz205,
    frz302,
    frz303,
    frz401,
    frz402,
    frz403,
    frz703,
)
from tests.zoo import live


def found(code: str, case: Case) -> list[Finding]:
    report = fl.audit(
        case.model, frozen=case.frozen, optimizer=case.optimizer, batch=case.batch,
        compute_loss=case.compute_loss,
    )  # fmt: skip
    return [finding for finding in report.findings if finding.code == code]


SEVERITIES = [
    ("FRZ004", frz004.bad_biases_alone, "info"),
    ("FRZ004", frz004.bad_half_of_a_norm, "warning"),
    ("FRZ004", frz004.bad_half_of_an_attention_that_drops, "warning"),
    ("FRZ005", frz005.bad_frozen_after_backward, "error"),
    ("FRZ005", frz005.bad_zeros_that_move_nothing_are_counted_all_the_same, "warning"),
    ("FRZ005", frz005.bad_in_no_optimizer, "warning"),
    ("FRZ204", frz204.bad_new_head, "warning"),
    ("FRZ204", frz204.bad_norms_swapped_for_frozen_ones, "warning"),
    ("FRZ204", frz204.bad_loss_with_parameters, "info"),
    ("FRZ204", frz204.bad_as_large_as_a_frozen_one, "info"),
    ("FRZ204", frz204.bad_as_large_as_one_that_is_stepped, "info"),
    ("FRZ204", frz204.bad_of_another_shape_than_what_is_left_out, "info"),
    ("FRZ205", frz205.bad_frozen_in_the_middle_of_training, "error"),
    ("FRZ205", frz205.bad_frozen_before_the_first_step, "warning"),
    ("FRZ403", frz403.bad_one_norm, "error"),
    ("FRZ403", frz403.bad_after_train, "warning"),
    ("FRZ703", frz703.bad_function_in_an_attribute, "warning"),
    ("FRZ703", frz703.bad_measured, "error"),
]


@pytest.mark.parametrize(("code", "make", "severity"), SEVERITIES)
def test_severity(code: str, make: Callable[[], Case], severity: str) -> None:
    assert {finding.severity for finding in found(code, make())} == {severity}


PLACES = [
    ("FRZ001", frz001.bad_every_module_in_a_loop, ["trunk"]),
    ("FRZ001", frz001.bad_whole_model_and_a_head_that_is_meant_to_train, [""]),
    ("FRZ002", frz002.bad_parameters_of_a_backbone, [""]),
    ("FRZ002", frz002.bad_one_parameter, ["0.1.weight"]),
    ("FRZ002", frz002.bad_modules, ["0"]),
    ("FRZ003", frz003.bad_parameter_of_the_root, ["cls_token"]),
    ("FRZ003", frz003.bad_switched_on_again_in_a_part, ["trunk"]),
    ("FRZ004", frz004.bad_token_of_an_inner_module, ["0"]),
    ("FRZ005", frz005.bad_zeros_and_decay, ["0"]),
    ("FRZ203", frz203.bad_in_two_groups, ["1"]),
    ("FRZ302", frz302.bad_data_of_another_layer, ["0.weight"]),
    ("FRZ402", frz402.bad_one_element, ["0.weight"]),
    ("FRZ402", frz402.bad_in_one_of_two_parts, ["1.running_mean"]),
    ("FRZ703", frz703.bad_frozen_embeddings, ["bert.encoder.layer.0"]),
]


@pytest.mark.parametrize(("code", "make", "places"), PLACES)
def test_place(code: str, make: Callable[[], Case], places: list[str]) -> None:
    assert [finding.where for finding in found(code, make())] == places


def test_what_was_meant_to_train_is_left_out_of_the_mend() -> None:
    case = frz001.bad_whole_model_and_a_head_that_is_meant_to_train()
    [finding] = found("FRZ001", case)
    assert finding.mend == "fl.freeze(model, exclude=['fc'])"


def test_only_what_no_state_dict_has() -> None:
    case = frz401.bad_statistics_now()
    norm = case.model[0]  # type: ignore[index]
    norm.register_buffer("running_var", norm.running_var)
    findings = found("FRZ401", case)
    assert [name for f in findings for name in f.tensors] == [
        "0.running_mean", "0.num_batches_tracked",
    ]  # fmt: skip


def test_moving_statistics_without_an_adapter() -> None:
    assert found("FRZ403", frz101.bad_one_dimension()) == []


def test_what_is_no_norm_has_no_statistics() -> None:
    model = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    assert found("FRZ403", Case(frz303.adapted(model, "1"))) == []


def test_a_flag_of_modules_is_told_of_the_outermost() -> None:
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    for module in model.modules():
        module.require_grad = False
    assert [finding.where for finding in found("FRZ002", Case(model))] == [""]


def test_frozen_norms_are_not_counted_as_trainable_ones() -> None:
    assert found("FRZ501", frz101.bad_one_dimension()) == []


def test_a_claim_that_trains_is_not_called_left_out() -> None:
    case = frz003.bad_frozen_by_leaving_it_out_of_the_optimizer()
    assert found("FRZ202", case) == []


def test_claimed_ones_that_share_memory_share_with_nothing_trainable() -> None:
    assert found("FRZ302", frz003.bad_two_that_share_memory()) == []


def test_state_of_inert_parameters_is_told() -> None:
    model = live(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model[0].requires_grad_(False)
    [finding] = found("FRZ201", Case(model, optimizer=optimizer))
    assert finding.message == (
        "2 frozen parameters are in AdamW, without gradients; it keeps state for 2"
    )
