"""BatchNorm and InstanceNorm under a hold: no reset, and batch statistics without writing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from frostline.errors import FrostlineWarning
from frostline.freezing import ignored
from frostline.freezing.machinery import Held
from frostline.freezing.record import BATCH, EVAL


class HeldNorm(Held):
    """BatchNorm and its kin: no reset while held; batch statistics without writing on request."""

    @property
    def track_running_stats(self) -> bool:
        own = self.__dict__
        # In training, "does not track" is torch's own way to say: the batch, and write nothing.
        if BATCH in own and own["training"]:
            return False
        if "track_running_stats" not in own:
            raise AttributeError("track_running_stats")
        return own["track_running_stats"]  # type: ignore[no-any-return]

    @track_running_stats.setter
    def track_running_stats(self, value: bool) -> None:
        self.__dict__["track_running_stats"] = value

    def reset_running_stats(self) -> None:
        if EVAL not in self.__dict__ and BATCH not in self.__dict__:
            super().reset_running_stats()  # type: ignore[misc]
            return
        first = ignored.note(self, "reset_running_stats()")
        if first and not ignored.called_from("update_bn"):
            ignored.warn(
                f"reset_running_stats() on a held {type(self).__name__} was ignored, at "
                f"{ignored.caller()}. If you meant it: fl.unfreeze(model, ...) first, or "
                'fl.freeze(..., stats="update")',
                FrostlineWarning,
            )


class HeldInstanceNorm(HeldNorm):
    """InstanceNorm writes its statistics whenever it is given them, tracked or not."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        if BATCH not in self.__dict__ or not self.training:
            return super()._apply_instance_norm(input)  # type: ignore[misc, no-any-return]
        return F.instance_norm(
            input,
            None,
            None,
            self.weight,
            self.bias,
            True,
            0.0,  # nothing is averaged; the module's own momentum may be None, which torch refuses
            self.eps,
        )
