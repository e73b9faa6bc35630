"""Changes all that it shares with others, and fails at the end if it is told to."""

import io
import os
import sys

from backbones import build_backbone

os.chdir("/")
sys.path.append("/nowhere")
sys.path = [*sys.path, "/elsewhere"]
sys.argv.append("more")
sys.stdout = io.StringIO()
sys.excepthook = print
sys.modules["__main__"] = sys.modules[__name__]

model = build_backbone()


def build():
    sys.argv = ["mine"]
    os.chdir(os.sep)
    return model


def fails():
    build()
    raise KeyError("out of luck")


def exits():
    build()
    sys.exit(3)


def interrupted():
    build()
    raise KeyboardInterrupt
