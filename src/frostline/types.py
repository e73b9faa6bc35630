"""The types of results."""

from frostline._results import Change as Change
from frostline.attribution import Attribution as Attribution
from frostline.freezing.part import FrozenPart as FrozenPart
from frostline.manifests import Manifest as Manifest
