"""Builds its model only when it is run."""

from torch import nn


def train(model, epochs):
    return model, epochs


if __name__ == "__main__":
    model = nn.Linear(2, 1)
    train(model, 3)
