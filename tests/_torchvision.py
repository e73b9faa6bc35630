"""Let `import timm` work where torchvision is not installed.

timm imports torchvision for image transforms and data sets, which no test here uses; torchvision's
builds fit one torch each and cannot always be had. While timm's own import runs, and only then,
empty modules stand in for torchvision. Before and after nothing answers to that name, so that
transformers, which asks whether torchvision is there, gets the true answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _Names(type):
    """Gives an enumeration's members, `InterpolationMode.NEAREST`, by their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(ModuleType):
    """A module whose capitalised names are empty classes; others are looked for as submodules."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> type:
        if not name[0].isupper():
            raise AttributeError(name)
        return _Names(name, (), {})


class _StandInFinder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        # Without torchvision.models timm says itself that it cannot trace features.
        if fullname.partition(".")[0] == "torchvision" and "models" not in fullname:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def _stand_in() -> Iterator[None]:
    finder = _StandInFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


class _TimmLoader(Loader):
    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _stand_in():
            self.real.exec_module(module)


class _TimmFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        spec = PathFinder.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _TimmLoader(spec.loader)
        return spec


def install() -> None:
    """Prepare for a later `import timm`; nothing happens where the real torchvision is."""
    if PathFinder.find_spec("torchvision") is None:
        sys.meta_path.insert(0, _TimmFinder())
