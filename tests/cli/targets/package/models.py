"""Imports its neighbour relatively."""

import sys

from .layers import build_layer

words = list(sys.argv)


def build():
    return build_layer()
