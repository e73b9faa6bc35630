"""The plain nets of the zoo, of torch's own layers alone, as torch initialises them."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

CLASSES = 5
VOCABULARY = 40


def _conv_block(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()
    )


class TwoBranches(nn.Module):
    """A trunk of three conv-norm-ReLU blocks under two branches: the digit and its parity."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _conv_block(1, 8), _conv_block(8, 12), nn.MaxPool2d(2), _conv_block(12, 16)
        )
        self.main = nn.Sequential(
            nn.Flatten(), nn.Linear(256, 24), nn.ReLU(), nn.Linear(24, CLASSES)
        )
        self.second = nn.Sequential(
            nn.Flatten(), nn.Linear(256, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 1, 8, 8) to logits (N, CLASSES) and (N, 2)."""
        features = self.trunk(images)
        return self.main(features), self.second(features)


def _with_head(backbone: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(features, CLASSES)))


def mlp() -> nn.Module:
    backbone = nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16)
    )
    return _with_head(backbone, 16)


def conv3d() -> nn.Module:
    backbone = nn.Sequential(
        nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    )
    return _with_head(backbone, 6)


def instance_norm() -> nn.Module:
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )
    return _with_head(backbone, 32)


class Transformer(nn.Module):
    """torch's own encoder, whose fast path depends on requires_grad."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        """Vectors (N, length, 16) to logits (N, CLASSES)."""
        return self.head(self.encoder(sequence).mean(1))


class Recurrent(nn.Module):
    """A recurrent net with dropout between its layers, read at the last step."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        """Vectors (N, length, 8) to logits (N, CLASSES)."""
        outputs, _ = self.rnn(sequence)
        return self.head(outputs[:, -1])


def lstm() -> nn.Module:
    return Recurrent(nn.LSTM(8, 12, num_layers=2, dropout=0.3, batch_first=True))


def gru() -> nn.Module:
    return Recurrent(nn.GRU(8, 12, num_layers=2, dropout=0.3, batch_first=True))
