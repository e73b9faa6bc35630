# ruff: noqa: T201
"""Prints in every way: from Python, to the file descriptor, and in a child."""

import os
import subprocess

from torch import nn

print("while imported")


def build():
    print("while called")
    os.write(1, b"past Python\n")
    subprocess.run(["echo", "in a child"], check=True)
    return nn.Linear(2, 1)
