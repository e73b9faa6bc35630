"""frostline: hold what is frozen, and prove that it held."""

from frostline import errors as errors
from frostline import types as types
from frostline.attribution import attribute as attribute
from frostline.explaining import explain as explain
from frostline.freezing import freeze as freeze
from frostline.freezing import parts as parts
from frostline.freezing import unfreeze as unfreeze
from frostline.guarding import guard as guard
from frostline.manifests import digest as digest
from frostline.manifests import manifest as manifest
from frostline.parameter_groups import param_groups as param_groups
from frostline.selection import FLAGGED as FLAGGED
from frostline.summaries import summary as summary
