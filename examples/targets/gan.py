"""A GAN in the generator's turn: the discriminator judges and must not change.

frostline audit examples/targets/gan.py:setup

The generator's turn freezes the discriminator by flag and leaves it in training mode, because the
losses of the two turns are to be comparable. Its spectral norms iterate in every forward of
training mode, and its BatchNorm goes on averaging, over generated images this time.

The audit says:
  FRZ101 error  the discriminator's BatchNorm writes its statistics.
  FRZ104 error  its spectral norms move their vectors.
  FRZ103 info   its dropout is on.
`fl.freeze(model, 'discriminator', mode='follow')` holds the statistics and leaves the dropout on.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class GAN(nn.Module):
    def __init__(self, noise=16):
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(noise, 32, 4), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            spectral_norm(nn.Conv2d(3, 16, 3, stride=2)), nn.LeakyReLU(0.2), nn.Dropout2d(0.1),
            spectral_norm(nn.Conv2d(16, 32, 3)), nn.BatchNorm2d(32), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(32, 1),
        )  # fmt: skip

    def forward(self, noise):
        return self.discriminator(self.generator(noise))


def generator_loss(model, noise):
    return F.softplus(-model(noise)).mean()


def setup():
    torch.manual_seed(0)
    model = GAN()
    model(torch.randn(32, 16, 1, 1))  # stands for the turns before
    model.discriminator.requires_grad_(False)
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        "batch": torch.randn(8, 16, 1, 1),
        "compute_loss": generator_loss,
    }
