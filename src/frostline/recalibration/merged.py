"""``"merged"``: each batch is normalised with itself, and the moments of the batches are merged."""

from __future__ import annotations

from torch import Tensor

from frostline._moments import Moments
from frostline.errors import AccumulationError
from frostline.lockstep.norm_calls import NormCall
from frostline.recalibration.observing import Observing
from frostline.recalibration.populations import normalised


class Merging(Observing):
    """Answers each norm with the statistics of the batch that runs."""

    def batch_norm(self, call: NormCall) -> Tensor:
        """Normalised with itself.

        Raises:
            AccumulationError: a channel has one value, of which nothing would be left.
        """
        self.calls[id(call.running_mean)] += 1
        moments = Moments.of(call.input)
        if moments.count < 2:
            raise AccumulationError(
                f"{self.name(call)} has one value for each channel in a batch, and normalised with "
                'itself nothing is left of that. Use larger batches, or method="layerwise"'
            )
        self.add(call, moments)
        return normalised(call, moments)
