"""Fails while it is imported, within a function of its own."""

from backbones import build_backbone


def prepare():
    raise RuntimeError("no data here")


prepare()
model = build_backbone()
