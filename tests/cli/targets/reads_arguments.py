"""Reads its arguments where the model is built."""

import argparse

from torch import nn


def build():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, required=True)
    options = parser.parse_args()
    return nn.Linear(options.width, 1)
