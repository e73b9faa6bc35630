# ruff: noqa: E501  (a table)
"""What frostline does about each known way in which freezing fails; writes docs/coverage.md.

`F` rows are failure modes of freezing that users, maintainers or the source of a library have
shown; `M` rows are the ways in which PyTorch can write to a tensor; `G` rows are what a guard says of
a backbone that flags alone freeze. `python tests/coverage_table.py` writes the page, and
tests/test_coverage.py fails when it is stale or a test is not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"

VERDICTS = {
    "held": "it does not happen to a frozen part",
    "caught": "it is not prevented; `part.changes()`, or a guard, names what it did to the tensors",
    "told": "it is said: by `fl.audit`, a warning, a reported change, or `print(part)`",
    "refused": "an error that names it, before anything is frozen or trained any further",
    "planned": "nothing yet; it belongs to the feature that is named",
    "out of scope": "left to somebody else, and why",
}


class Row(NamedTuple):
    """One failure, what we do about it, and the test that shows it.

    Attributes:
        id: number of the row.
        failure: what goes wrong.
        verdict: one of VERDICTS.
        by: what does it, or why nothing does.
        test: id of a test; None for what is planned or out of scope.
    """

    id: str
    failure: str
    verdict: str
    by: str
    test: str | None


T = "tests/"
Z = "tests/freezing/"
HOLD = Z + "test_hold_table.py::test_held"
CHANGES = "`changes()`: `value`"

# Before a run: the rules of the audit that tell a failure mode of the corpus in tests/auditing/faults,
# by the digits of their codes. The others cannot be told from a set-up; the corpus says why.
TOLD = {
    "F1": ("101",),
    "F2": (
        "101",
        "102",
    ),
    "F3": ("102",),
    "F4": ("102",),
    "F5": ("101",),
    "F6": ("101",),
    "F7": ("110",),
    "F8": ("105",),
    "F9": (
        "101",
        "105",
    ),
    "F10": (
        "101",
        "102",
    ),
    "F11": (
        "101",
        "502",
    ),
    "F12": ("102",),
    "F13": ("102",),
    "F14": ("109",),
    "F15": ("007",),
    "F16": (
        "101",
        "504",
    ),
    "F17": (
        "101",
        "504",
    ),
    "F18": (
        "101",
        "102",
    ),
    "F20": (
        "202",
        "204",
    ),
    "F21": ("007",),
    "F22": ("101",),
    "F24": ("206",),
    "F25": ("005",),
    "F26": (
        "005",
        "201",
    ),
    "F27": (
        "003",
        "101",
        "202",
    ),
    "F28": ("005",),
    "F29": ("202",),
    "F31": ("202",),
    "F32": (
        "003",
        "101",
    ),
    "F33": (
        "003",
        "101",
    ),
    "F34": ("006",),
    "F37": ("001",),
    "F38": ("002",),
    "F39": ("003",),
    "F40": (
        "003",
        "101",
    ),
    "F41": (
        "003",
        "004",
    ),
    "F42": ("003",),
    "F43": (
        "003",
        "301",
    ),
    "F44": ("003",),
    "F45": (
        "003",
        "202",
        "204",
    ),
    "F46": ("402",),
    "F47": ("402",),
    "F48": ("106",),
    "F49": (
        "102",
        "108",
    ),
    "F50": ("104",),
    "F51": ("107",),
    "F52": ("111",),
    "F53": (
        "100",
        "108",
    ),
    "F54": (
        "108",
        "401",
    ),
    "F55": ("103",),
    "F56": ("601",),
    "F57": ("108",),
    "F58": (
        "101",
        "102",
        "403",
    ),
    "F59": ("404",),
    "F60": ("402",),
    "F61": ("006",),
    "F63": ("402",),
    "F65": ("303",),
    "F66": ("207",),
    "F67": (
        "207",
        "703",
    ),
    "F68": ("112",),
    "F69": ("113",),
    "F71": ("701",),
    "F72": ("702",),
    "F77": (
        "003",
        "101",
    ),
    "F79": (
        "202",
        "204",
    ),
    "F82": ("101",),
    "F84": ("005",),
    "F85": ("101",),
}

# fmt: off
MODES = [
    Row("F1", "Running statistics move although no parameter requires gradients", "held", "eval mode, read from the record", HOLD + "[BatchNorm2d, model.train()]"),
    Row("F2", "`model.train()` undoes `.eval()`", "held", "eval mode, read from the record", HOLD + "[BatchNorm1d, model.train()]"),
    Row("F3", "The trainer goes back to training after validation", "held", "eval mode, under Lightning", T + "trainers/test_lightning.py::test_held_nothing_drifts"),
    Row("F4", "The trainer calls `train()` at every step", "held", "eval mode, under transformers' Trainer", T + "trainers/test_transformers.py::test_held_nothing_drifts"),
    Row("F5", "Modes are written back one by one, past `train()`", "held", "`training` is a property", HOLD + "[BatchNorm1d, modes restored one by one]"),
    Row("F6", "A child goes into training on its own", "held", "every module that reads its mode is held itself", HOLD + "[BatchNorm1d, child.train()]"),
    Row("F7", "A `train` that does nothing, hung on the object, breaks copies and pickles", "held", "a class, no attribute; copies hold", HOLD + "[BatchNorm1d, copies of copies]"),
    Row("F8", "Statistics stay, but the output is normalised with the batch", "held", '`stats="hold"` takes the eval path', Z + "test_switches.py::test_in_training_stats_decides"),
    Row("F9", "`momentum=0` still counts batches and uses the batch", "held", "momentum is left alone, the counter stands still", HOLD + "[BatchNorm, cumulative, model.train()]"),
    Row("F10", "Norms of another class are forgotten", "held", "held by what a module reads and keeps, not by one class", HOLD + "[InstanceNorm2d, tracking, model.train()]"),
    Row("F11", "A batch of one cannot be normalised in training", "held", "eval path", T + "test_failure_modes.py::test_a_batch_of_one_runs_in_training_mode"),
    Row("F12", "Conversion to SyncBatchNorm makes new modules that nobody froze", "refused", "`FrozenStateChanged` at the next mode write or step", Z + "test_impossible.py::test_convert_sync_batchnorm_makes_new_objects_and_is_refused_at_the_next_step"),
    Row("F13", "Conversion drops what was hung on the old module", "refused", "as F12; converted before the freeze it is held", Z + "test_impossible.py::test_convert_sync_batchnorm_makes_new_objects_and_is_refused_at_the_next_step"),
    Row("F14", "A frozen part stays in training during validation", "held", "held means eval at all times", Z + "test_switches.py::test_mode_decides_dropout"),
    Row("F15", "`update_bn` wipes the statistics", "held", "resets are ignored, and counted", Z + "test_part.py::test_update_bn_does_not_warn_and_does_not_write"),
    Row("F16", "Activation checkpointing updates statistics twice", "held", "eval path", HOLD + "[BatchNorm1d, checkpoint]"),
    Row("F17", "Extra forwards in training mode, also under `no_grad`, move statistics", "held", "eval path", HOLD + "[BatchNorm1d, no_grad]"),
    Row("F18", "A teacher inside of the student follows its `train()`", "held", "eval mode, read from the record", HOLD + "[BatchNorm1d, training = True]"),
    Row("F19", "A frozen norm of another class computes other numbers", "held", "the layer runs its own forward", Z + "test_not_harmed.py::test_the_eval_output_is_the_same_before_during_and_after"),
    Row("F20", "An exchanged norm leaves dead parameters in the optimizer", "held", "objects stay", Z + "test_not_harmed.py::test_state_dict_parameters_and_optimizer_stay"),
    Row("F21", "Statistics are frozen that were never trained", "told", "`FrostlineWarning`", Z + "test_bad_input.py::test_a_norm_that_was_never_trained"),
    Row("F22", "Norms outside of the backbone are forgotten", "told", "`print(part)` says what is held and what trains", Z + "test_part.py::test_print_counts"),
    Row("F23", "A frozen norm disagrees with mixed precision", "held", "torch's own kernel runs", HOLD + "[BatchNorm1d, autocast]"),
]

OPTIMIZERS = [
    Row("F24", "Rows with zeroed gradients still decay", "planned", "freezing of rows; whole tensors: F26", None),
    Row("F25", "Gradients from before the freeze move frozen tensors", "held", "gradients go at the freeze", HOLD + "[BatchNorm1d, three steps of SGD]"),
    Row("F26", "An optimizer from before the freeze keeps momentum and decay", "held", "no gradient, no step; with `optimizer=` its state is set aside", Z + "test_optimizers.py::test_momentum_set_aside_by_freeze_comes_back"),
    Row("F27", "Left out of the optimizer, but still gathering gradients", "told", "`fl.audit`", T + "auditing/test_faults.py::test_a_fault_is_told_by_its_codes[F27-left_out_of_the_optimizer_only]"),
    Row("F28", "Stale gradients of frozen tensors shrink the clipped step of the rest", "held", "gradients go at the freeze", Z + "test_optimizers.py::test_freeze_clears_gradients_and_undo_brings_the_objects_back"),
    Row("F29", "What is thawed is in no optimizer", "told", "`fl.audit`; `unfreeze` returns what has to be added", T + "auditing/test_faults.py::test_a_fault_is_told_by_its_codes[F29-thawed_and_in_no_optimizer]"),
    Row("F30", "New groups break schedulers and resuming", "held", "groups stay as they are", Z + "test_optimizers.py::test_groups_stay"),
    Row("F31", "A parameter is skipped because another has equal values", "held", "identity decides", T + "test_names.py::test_aliases_follow_identity_and_not_equality"),
    Row("F32", "A framework switches `requires_grad` on again", "caught", "`changes()`: `requires_grad`", Z + "test_impossible.py::test_requires_grad_switched_on_again_is_named_and_not_undone"),
    Row("F33", "Norms stay trainable by default", "held", "a part covers all tensors below what it names", Z + "test_part.py::test_tensors_and_modules"),
    Row("F34", "With everything frozen the error comes late and far away", "refused", "`FreezeError`, with `optimizer=`", Z + "test_bad_input.py::test_nothing_left_to_train"),
    Row("F35", "An optimizer of a third party needs a gradient everywhere", "held", "`param_groups` leaves out what is frozen", T + "parameter_groups/test_grouping.py::test_every_trainable_parameter_stands_in_one_group"),
    Row("F36", "Rows are written back after each step", "planned", "freezing of rows", None),
]

SELECTING = [
    Row("F37", "`module.requires_grad = False` does nothing", "told", "`fl.audit`; `freeze` sets the flags of parameters", T + "auditing/test_faults.py::test_a_fault_is_told_by_its_codes[F37-flag_set_on_the_model]"),
    Row("F38", "A misspelt flag on a parameter does nothing", "told", "`fl.audit`", T + "auditing/test_faults.py::test_a_fault_is_told_by_its_codes[F38-flag_misspelt_on_parameters]"),
    Row("F39", "A prefix hits too much: `layer1` and `layer10`", "held", "names are anchored", T + "test_selection.py::test_modules[a name is anchored: layer1 is not layer10]"),
    Row("F40", "A selector hits nothing, silently", "refused", "`SelectionError` with the nearest names", T + "test_selection.py::test_no_match_says_what_is_near"),
    Row("F41", "Parameters of the root are missed", "held", "tensors are found by name, not by child", HOLD + "[root parameters, gradients written by hand]"),
    Row("F42", "Parametrised weights have other names", "held", "a module brings what is below it", HOLD + "[weight_norm, gradients written by hand]"),
    Row("F43", "One of two tied tensors is frozen", "refused", "`SelectionError` names all places", T + "test_selection.py::test_half_of_a_tied_pair_names_the_group"),
    Row("F44", "Parameters appear after the freeze", "told", "`changes()`: `added`, a report", Z + "test_allowed.py::test_submodule_added_inside_is_reported"),
    Row("F45", "A new parameter in the place of a frozen one is trainable", "held", "frozen again at the next mode write or step", Z + "test_places.py::test_trainable_parameters_put_in_place_of_frozen_ones"),
    Row("F46", "A load into a frozen part is silent", "caught", CHANGES, Z + "test_allowed.py::test_load_of_other_weights_is_drift_of_value"),
    Row("F47", "Initialisation runs again over pretrained weights", "caught", CHANGES, Z + "test_allowed.py::test_reinitialisation_of_weights_is_drift"),
]

STATE = [
    Row("F48", "`Embedding(max_norm)` rewrites its table in every mode", "held", "rows that are looked up are renormalised in a copy", HOLD + "[Embedding(max_norm), model.train()]"),
    Row("F49", "A codebook follows its inputs", "held", "eval mode; initialisation at the first call: F57", HOLD + "[VQ codebook, model.train()]"),
    Row("F50", "Spectral norm iterates", "held", "eval mode", HOLD + "[spectral_norm, model.train()]"),
    Row("F51", "Observers and fake quantisation look at no mode", "held", "observers are shadowed", HOLD + "[FakeQuantize, model.train()]"),
    Row("F52", "A routing bias is balanced by a hook of the optimizer", "caught", CHANGES, T + "test_failure_modes.py::test_a_bias_that_a_step_hook_balances_is_named"),
    Row("F53", "Queues, counters and caches are written in training mode", "held", "eval mode", HOLD + "[call counter, model.train()]"),
    Row("F54", "Tensors that no state dict has", "held", "sealed too; numbers that are no tensors are not covered", HOLD + "[non-persistent statistic, model.train()]"),
    Row("F55", "Dropout and its kin stay on in the frozen part", "held", '`mode="eval"`; `mode="follow"` leaves them on', Z + "test_switches.py::test_mode_decides_dropout"),
    Row("F56", "Randomness by function ignores eval mode", "told", "`fl.audit` with a batch; no mode can hold it", T + "auditing/test_faults.py::test_a_fault_is_told_by_its_codes[F56-dropout_by_function_in_eval]"),
    Row("F57", "Modules that write to themselves in eval mode", "caught", "first forward compared, put back, `FrozenStateChanged`", Z + "test_watching.py::test_first_forward_names_the_write_and_puts_the_value_back"),
]

ADAPTERS = [
    Row("F58", "The statistics of an adapter's base move and are not saved with it", "held", '`mode="follow"` holds norms', T + "trainers/test_peft_like.py::test_lora_with_flagged_and_follow"),
    Row("F59", "An initialiser subtracts from the base weights", "caught", CHANGES, T + "test_mutations.py::test_a_write_is_named[.data = new]"),
    Row("F60", "Unmerging an adapter does not bring the old bytes back", "caught", CHANGES, T + "test_failure_modes.py::test_an_adapter_merged_and_unmerged_is_named"),
    Row("F61", "Preparation for low-bit training changes dtypes", "told", "`changes()`: `cast`, a report", Z + "test_allowed.py::test_cast_is_reported_as_a_cast"),
    Row("F62", "A round trip through half precision changes values", "told", "`changes()`: `cast`, told from drift", Z + "test_sealing.py::test_module_casts_there_and_back"),
    Row("F63", "The moving average of a constant moves", "caught", CHANGES + ", in the copy's own part", T + "test_mutations.py::test_an_average_of_a_constant[multiply and add]"),
    Row("F64", "Packed low-bit weights are averaged as if they were numbers", "caught", CHANGES + ", for torchao's int8; bitsandbytes not run", T + "trainers/test_torchao.py::test_one_bit_of_an_int8_weight_is_named"),
    Row("F65", "A copy trains beside the base, and one looks at the wrong one", "told", "`summary` lists both, with what trains", T + "trainers/test_peft_like.py::test_summary_tells_the_copy_that_trains_from_the_original"),
]

AUTOGRAD = [
    Row("F66", "`no_grad` around a frozen middle cuts gradients to what is before it", "held", "flags only; a `no_grad` of one's own: `fl.audit` with a batch", Z + "test_not_harmed.py::test_gradients_through_a_frozen_middle_are_those_of_the_flag"),
    Row("F67", "Reentrant checkpointing of frozen inputs loses all gradients", "told", "`fl.audit`", T + "auditing/test_faults.py::test_a_fault_is_told_by_its_codes[F67-reentrant_checkpoint_of_a_library]"),
    Row("F68", "Recurrent layers on cuDNN cannot go backward in eval mode", "held", "the kernel is told to train, dropout 0; seen on the CPU only", Z + "test_holders.py::test_kernel_is_told_to_train_only_where_the_input_needs_a_gradient"),
    Row("F69", "Eval mode switches activation checkpointing off", "held", "layers of transformers; others are warned of", Z + "test_checkpointing.py::test_held_layers_save_as_few_bytes_as_free_ones"),
    Row("F70", "A freeze saves neither memory nor time", "told", "`summary` says what a step will take; time: speed, planned", T + "summaries/test_step.py::test_frozen_layers_save_nothing_below_the_first_trainable_one"),
]

DISTRIBUTED = [
    Row("F71", "Flags are toggled under DDP", "refused", "`FreezeError`", Z + "test_bad_input.py::test_wrapped_in_ddp_already"),
    Row("F72", "DDP writes equal buffers, and version counters cry", "held", "bytes decide; DDP's own error in double forwards is DDP's", T + "test_mutations.py::test_collectives_that_bring_equal_bytes_are_silent[DDP with buffer broadcast]"),
    Row("F73", "Replicas of DataParallel", "held", "records are copied along", Z + "test_export.py::test_replicas_of_data_parallel_are_held"),
    Row("F74", "Flat parameters of FSDP1 need one flag", "out of scope", "FSDP1 is not run here; FSDP2 is", Z + "test_distributed.py::test_frozen_bytes_hold_over_two_ranks"),
    Row("F75", "DeepSpeed leaves frozen parameters out of checkpoints", "out of scope", "DeepSpeed's format; not run here", None),
    Row("F76", "Compiled graphs know the old mode or flag", "held", "guards see the record", Z + "test_compile.py::test_what_is_frozen_holds_in_compiled_code"),
    Row("F77", "Flags and modes are not saved, so resuming trains everything", "held", "a manifest carries the switches", Z + "test_manifest_resume.py::test_resume"),
    Row("F78", "Distributed checkpoints drop the optimizer state of frozen parameters", "out of scope", "torch's format", None),
    Row("F79", "Lists of objects are worthless after a copy", "held", "parts go by name; copies own theirs", Z + "test_copies.py::test_a_copy_owns_its_part"),
    Row("F80", "Version counters miss writes", "caught", CHANGES + ", by bytes", T + "test_mutations.py::test_a_write_is_named[numpy]"),
]

PROCESS = [
    Row("F81", "Drift is found by accident", "caught", "`assert_unchanged()` raises", Z + "test_sealing.py::test_seal_again_after_a_wanted_load"),
    Row("F82", "A status reports what was meant, not what is", "caught", "`changes()`: `mode`, from the modules themselves", Z + "test_sealing.py::test_mode_detection"),
    Row("F83", "Nobody can say what is frozen", "told", "`print(part)`", Z + "test_part.py::test_print_counts"),
    Row("F84", "The freeze comes inside of a step", "held", "gradients go at the freeze", T + "test_failure_modes.py::test_a_freeze_inside_of_a_step_comes_in_time"),
    Row("F85", "Tutorials set flags and stop there", "told", "`fl.audit`; for a whole script `frostline guard`", T + "auditing/test_faults.py::test_a_fault_is_told_by_its_codes[F85-tutorial_of_transfer_learning]"),
]

NAMED = T + "test_mutations.py::test_a_write_is_named"
SILENT = T + "test_mutations.py::test_equal_bytes_are_silent"
M = T + "test_mutations.py::"

MUTATIONS = [
    Row("M1", "In place under `no_grad`, by item, `out=`, `nn.init`, `_foreach_`, view or `detach()`", "caught", CHANGES, NAMED + "[no_grad add_]"),
    Row("M2", "In place under `inference_mode`", "caught", CHANGES, NAMED + "[inference_mode]"),
    Row("M3", "To a tensor made under `inference_mode`", "caught", CHANGES, M + "test_a_tensor_born_in_inference_mode_is_sealed_and_named"),
    Row("M4", "Through `.data`, also an alias from before", "caught", CHANGES, NAMED + "[.data alias from before]"),
    Row("M5", "Through numpy or ctypes", "caught", CHANGES, NAMED + "[ctypes]"),
    Row("M6", "Through a dlpack alias", "caught", CHANGES, NAMED + "[dlpack]"),
    Row("M7", "Through the storage", "caught", CHANGES, NAMED + "[storage item]"),
    Row("M8", "`.data = other`, `vector_to_parameters`", "caught", CHANGES, M + "test_vector_to_parameters"),
    Row("M9", "`swap_tensors`", "refused", "by torch: a part refers weakly to its tensors", M + "test_swap_tensors_is_refused_by_torch"),
    Row("M10", "`half()` and other casts", "told", "`changes()`: `cast`", M + "test_half_is_a_cast" ),
    Row("M11", "`share_memory_`, and other moves of equal bytes", "held", "nothing changed, nothing is said", SILENT + "[share_memory_]"),
    Row("M12", "`set_`", "caught", CHANGES, NAMED + "[set_]"),
    Row("M13", "Another Parameter in its place", "caught", "`changes()`: `value`, `requires_grad`", M + "test_another_parameter_in_its_place"),
    Row("M14", "`load_state_dict(assign=True)`", "caught", CHANGES, M + "test_load_state_dict[assigned-other]"),
    Row("M15", "`load_state_dict`", "caught", CHANGES, M + "test_load_state_dict[copied-other]"),
    Row("M16", "The same with equal values", "held", "nothing drifted, nothing is raised", M + "test_load_state_dict[copied-equal]"),
    Row("M17", "A step of an optimizer of torch, 20 ways", "held", "gradients go before the step", M + "test_an_optimizer_is_held_off[RMSprop]"),
    Row("M18", "A step past our hook: default, foreach", "caught", CHANGES, M + "test_what_an_optimizer_wrote_is_named[AdamW foreach]"),
    Row("M19", "A step past our hook: fused, which bumps no version", "caught", CHANGES, M + "test_what_an_optimizer_wrote_is_named[AdamW fused]"),
    Row("M20", "A step of LBFGS, which needs no gradient", "refused", "`FreezeError`", M + "test_lbfgs_is_refused_before_it_writes"),
    Row("M21", "Statistics of BatchNorm in a training forward", "held", "eval mode", M + "test_modules_that_write_are_held[BatchNorm1d]"),
    Row("M22", "`F.batch_norm` on the buffers, also under `no_grad`", "caught", CHANGES, M + "test_functions_that_write_statistics_are_named[batch_norm under no_grad]"),
    Row("M23", "The counter of batches", "caught", CHANGES, M + "test_a_counter_is_named"),
    Row("M24", "`_native_batch_norm_legit`, `_batch_norm_with_update`", "caught", CHANGES, M + "test_functions_that_write_statistics_are_named[_native_batch_norm_legit]"),
    Row("M25", "InstanceNorm, `Embedding(max_norm)`, spectral norm, FakeQuantize as modules", "held", "eval mode, and machinery of their own", M + "test_modules_that_write_are_held[Embedding(max_norm)]"),
    Row("M26", "The same as functions", "caught", CHANGES, M + "test_an_embedding_function_that_renormalises_is_named"),
    Row("M27", "An averaged copy of the model", "caught", CHANGES + "; the `lerp` form is exact", M + "test_an_average_of_a_constant[lerp]"),
    Row("M28", "Collectives that bring other bytes", "caught", CHANGES + ", two gloo ranks", M + "test_collectives_of_two_ranks_are_named[all_reduce]"),
    Row("M29", "Collectives that bring equal bytes, and DDP's constructor", "held", "nothing changed, nothing is said", M + "test_collectives_that_bring_equal_bytes_are_silent[_broadcast_coalesced]"),
    Row("M30", "A custom operator that declares its write, or does not", "caught", CHANGES, M + "test_a_custom_op[undeclared]"),
    Row("M31", "One of several slices of a flat tensor", "caught", CHANGES + ", that one only", M + "test_of_slices_of_one_flat_tensor_only_the_written_one_is_named"),
    Row("M32", "Writes in code compiled for eager", "caught", CHANGES, M + "test_compiled_writes[parameter-eager]"),
    Row("M33", "Writes in code compiled with aot_eager", "caught", CHANGES, M + "test_compiled_writes[statistics-aot_eager]"),
    Row("M34", "A file is edited under its mapped tensors", "caught", CHANGES, M + "test_a_file_edited_under_its_tensors"),
    Row("M35", "`functional_call` with other tensors", "held", "nothing changed, nothing is said", M + "test_functional_call_is_silent"),
    Row("M36", "Kernels on a GPU: CUDA graphs, Triton, cuDNN", "out of scope", "not run on a GPU so far", None),
]

ALONE = T + "guarding/test_tiers.py::test_each_tier_alone"
GUARD = T + "guarding/test_tiers.py::test_the_guard_names_it_at_its_step"
READ = "pages at that step; content within its announced steps; full check"
ASKED = "identity at that step; full check"

GUARDED = [
    Row("G1", "In place by torch: `no_grad`, item, `out=`, view, `detach()`, `inference_mode`", "caught", READ, ALONE + "[inference_mode-transformer]"),
    Row("G2", "Past autograd: `.data`, numpy, ctypes, `memcpy`, a `read(2)`, dlpack, storage", "caught", READ, ALONE + "[read(2) into the tensor-lstm]"),
    Row("G3", "One ULP, another zero, another NaN", "caught", READ, ALONE + "[another NaN-cnn]"),
    Row("G4", "From another thread, or by a collective", "caught", READ, ALONE + "[all_reduce-tied]"),
    Row("G5", "By an optimizer: for-loop, foreach, fused; its decay, its momentum", "caught", READ, ALONE + "[AdamW, fused-transformer]"),
    Row("G6", "By a moving average, a merged adapter, a hook of the step", "caught", READ, ALONE + "[EMA by torch-cnn]"),
    Row("G7", "`load_state_dict`, `apply(init)`, `reset_parameters()`", "caught", READ, ALONE + "[load_state_dict-lstm]"),
    Row("G8", "BatchNorm after `model.train()`, under `no_grad`, recomputed, reset", "caught", READ, ALONE + "[model.train() after validation-cnn]"),
    Row("G9", "`Embedding(max_norm)`, `spectral_norm`, observers, codebooks, queues", "caught", READ, ALONE + "[Embedding(max_norm)-renormed]"),
    Row("G10", "Compiled by aot_eager, or a custom operator that does not say what it writes", "caught", READ, ALONE + "[compiled by aot_eager-cnn]"),
    Row("G11", "Other memory: `.data = other`, `vector_to_parameters`, `set_`, `swap_tensors`", "caught", ASKED, ALONE + "[vector_to_parameters-lstm]"),
    Row("G12", "Other objects: a Parameter, a module, `load_state_dict(assign=True)`, a deletion", "caught", ASKED, ALONE + "[another backbone-tied]"),
    Row("G13", "Another shape over the same memory", "caught", "identity within 16 steps; full check", ALONE + "[resize_() in place-cnn]"),
    Row("G14", "A file edited under its mapped tensor", "caught", "content within its announced steps; full check", ALONE + "[a file edited under its tensor-cnn]"),
    Row("G15", "One slice of a flat tensor", "caught", READ + "; that one only", ALONE + "[one of the slices of one tensor-flat]"),
    Row("G16", "A cast there and back", "told", "`cast`, a report", GUARD + "[half() and back-transformer]"),
    Row("G17", "A write and its undo, or of equal bytes", "told", "a note; no tier raises an alarm", GUARD + "[a write and its undo-cnn]"),
    Row("G18", "Equal loads, moves, `DistributedDataParallel`, `functional_call`, copies", "held", "nothing changed, no alarm", GUARD + "[DistributedDataParallel-lstm]"),
    Row("G19", "A false alarm in 10,000 clean steps of 17 kinds", "held", "none was seen", T + "guarding/test_clean_steps.py::test_clean_steps"),
]

# fmt: on

SECTIONS: dict[str, list[Row]] = {
    "Modes and statistics": MODES,
    "Gradients and optimizers": OPTIMIZERS,
    "Selecting": SELECTING,
    "State beside the norms": STATE,
    "Adapters and precision": ADAPTERS,
    "Autograd and memory": AUTOGRAD,
    "Many devices, compilers, checkpoints": DISTRIBUTED,
    "Process": PROCESS,
    "Ways of writing to a tensor": MUTATIONS,
    "Under a guard, with nothing held": GUARDED,
}
ROWS = [row for rows in SECTIONS.values() for row in rows]

_INTRODUCTION = """\
# Coverage

Known ways in which freezing fails, and ways in which PyTorch can write to a tensor: what frostline
does about each, by what, and the test that shows it. A row claims no more than its test. The page
is generated by `python tests/coverage_table.py`; a test fails when it is stale or names a test that
is not there.
"""


def page() -> str:
    """The page, as it should be."""
    meanings = "\n".join(f"- **{verdict}**: {text}" for verdict, text in VERDICTS.items())
    sections = [_section(title, rows) for title, rows in SECTIONS.items()]
    return "\n".join([_INTRODUCTION, meanings, "", *sections])


def _section(title: str, rows: list[Row]) -> str:
    # What writes to a tensor is seen when it does; before that there are only failure modes.
    audited = any(row.id in TOLD for row in rows)
    head = ["", "What happens", "Verdict", "By", *(["Told before by"] if audited else []), "Test"]
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(_line(row, audited) for row in rows), ""])


def _line(row: Row, audited: bool) -> str:
    test = f"`{row.test.removeprefix('tests/')}`" if row.test is not None else ""
    codes = ", ".join(f"[FRZ{n}](rules/frz{n}.md)" for n in TOLD.get(row.id, ()))
    cells = [row.id, row.failure, row.verdict, row.by, *([codes] if audited else []), test]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
