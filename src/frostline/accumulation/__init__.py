"""The big batch from microbatches: its gradients, its loss and its running statistics."""

from frostline.accumulation.accumulate import accumulate as accumulate
from frostline.accumulation.plan import plan as plan
from frostline.accumulation.splitting import split as split
