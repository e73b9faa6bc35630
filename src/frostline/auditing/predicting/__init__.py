"""What a training step changes, told without data: it runs on tensors that have no memory."""

from frostline.auditing.predicting.reasons import NotPredictable as NotPredictable
from frostline.auditing.predicting.running import predict as predict
