"""Freezing: the hold, what it covers, and letting go again."""

from frostline.freezing.applying import freeze as freeze
from frostline.freezing.finding import parts as parts
from frostline.freezing.holders import register_holder as register_holder
from frostline.freezing.machinery import rebuild_held as rebuild_held
from frostline.freezing.machinery import rebuild_held_by_call as rebuild_held_by_call
from frostline.freezing.part import FrozenPart as FrozenPart
from frostline.freezing.thawing import unfreeze as unfreeze
from frostline.freezing.watching import rebuild_watched as rebuild_watched
