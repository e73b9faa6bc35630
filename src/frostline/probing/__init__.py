"""``coupling``: which modules couple the samples of a batch, found by replacing some of them."""

from frostline.probing.coupling import coupling as coupling
