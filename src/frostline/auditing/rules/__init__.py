"""Every rule of the audit, in one table."""

from frostline.auditing.rule import Rule
from frostline.auditing.rules.frz001_flag_on_module import RULE as FRZ001
from frostline.auditing.rules.frz002_misspelt_flag import RULE as FRZ002
from frostline.auditing.rules.frz003_claimed_but_trainable import RULE as FRZ003
from frostline.auditing.rules.frz004_partly_frozen_module import RULE as FRZ004
from frostline.auditing.rules.frz005_stale_grad import RULE as FRZ005
from frostline.auditing.rules.frz006_nothing_trainable import RULE as FRZ006
from frostline.auditing.rules.frz007_identity_statistics import RULE as FRZ007
from frostline.auditing.rules.frz008_lazy_parameter import RULE as FRZ008
from frostline.auditing.rules.frz100_unexplained_change import RULE as FRZ100
from frostline.auditing.rules.frz101_batchnorm_stats_update import RULE as FRZ101
from frostline.auditing.rules.frz102_eval_undone_by_train import RULE as FRZ102
from frostline.auditing.rules.frz103_active_dropout import RULE as FRZ103
from frostline.auditing.rules.frz104_power_iteration_update import RULE as FRZ104
from frostline.auditing.rules.frz105_batch_statistics_in_frozen_norm import RULE as FRZ105
from frostline.auditing.rules.frz106_embedding_max_norm import RULE as FRZ106
from frostline.auditing.rules.frz107_active_observer import RULE as FRZ107
from frostline.auditing.rules.frz108_self_writing_module import RULE as FRZ108
from frostline.auditing.rules.frz109_stuck_in_training import RULE as FRZ109
from frostline.auditing.rules.frz110_patched_train import RULE as FRZ110
from frostline.auditing.rules.frz111_router_bias_update import RULE as FRZ111
from frostline.auditing.rules.frz112_recurrent_backward_in_eval import RULE as FRZ112
from frostline.auditing.rules.frz113_checkpointing_switched_off import RULE as FRZ113
from frostline.auditing.rules.frz201_frozen_param_in_optimizer import RULE as FRZ201
from frostline.auditing.rules.frz202_trainable_param_not_in_optimizer import RULE as FRZ202
from frostline.auditing.rules.frz203_duplicate_param_in_optimizer import RULE as FRZ203
from frostline.auditing.rules.frz204_foreign_param_in_optimizer import RULE as FRZ204
from frostline.auditing.rules.frz205_optimizer_moves_without_gradient import RULE as FRZ205
from frostline.auditing.rules.frz206_rows_frozen_by_hook import RULE as FRZ206
from frostline.auditing.rules.frz207_trainable_param_without_gradient import RULE as FRZ207
from frostline.auditing.rules.frz301_tied_across_boundary import RULE as FRZ301
from frostline.auditing.rules.frz302_trainable_view_of_frozen_storage import RULE as FRZ302
from frostline.auditing.rules.frz303_copy_trains_beside_base import RULE as FRZ303
from frostline.auditing.rules.frz401_state_outside_checkpoint import RULE as FRZ401
from frostline.auditing.rules.frz402_changed_since_freeze import RULE as FRZ402
from frostline.auditing.rules.frz403_moving_statistics_under_adapter import RULE as FRZ403
from frostline.auditing.rules.frz404_adapter_rewrites_base import RULE as FRZ404
from frostline.auditing.rules.frz501_batchnorm_in_microbatches import RULE as FRZ501
from frostline.auditing.rules.frz502_one_value_per_channel import RULE as FRZ502
from frostline.auditing.rules.frz503_batch_dependent_frozen_part import RULE as FRZ503
from frostline.auditing.rules.frz504_statistics_updated_twice import RULE as FRZ504
from frostline.auditing.rules.frz601_nondeterministic_frozen_part import RULE as FRZ601
from frostline.auditing.rules.frz602_output_differs_by_mode import RULE as FRZ602
from frostline.auditing.rules.frz701_flags_changed_under_ddp import RULE as FRZ701
from frostline.auditing.rules.frz702_buffers_broadcast_over_frozen import RULE as FRZ702
from frostline.auditing.rules.frz703_reentrant_checkpoint_over_frozen_input import RULE as FRZ703

# Looks at what the others found, so it runs last.
UNEXPLAINED: Rule = FRZ100
RULES: tuple[Rule, ...] = (
    FRZ001,
    FRZ002,
    FRZ003,
    FRZ004,
    FRZ005,
    FRZ006,
    FRZ007,
    FRZ008,
    FRZ101,
    FRZ102,
    FRZ103,
    FRZ104,
    FRZ105,
    FRZ106,
    FRZ107,
    FRZ108,
    FRZ109,
    FRZ110,
    FRZ111,
    FRZ112,
    FRZ113,
    FRZ201,
    FRZ202,
    FRZ203,
    FRZ204,
    FRZ205,
    FRZ206,
    FRZ207,
    FRZ301,
    FRZ302,
    FRZ303,
    FRZ401,
    FRZ402,
    FRZ403,
    FRZ404,
    FRZ501,
    FRZ502,
    FRZ503,
    FRZ504,
    FRZ601,
    FRZ602,
    FRZ701,
    FRZ702,
    FRZ703,
)
BY_CODE: dict[str, Rule] = {
    rule.code: rule for rule in sorted((UNEXPLAINED, *RULES), key=lambda r: r.code)
}
PREVIEW: frozenset[str] = frozenset(c for c, rule in BY_CODE.items() if rule.status == "preview")
