"""What a module does when it runs forward: what it reads, what it writes to itself, and when."""

from frostline.behaviours.doing import Behaviour as Behaviour
from frostline.behaviours.doing import Doing as Doing
from frostline.behaviours.doing import Write as Write
from frostline.behaviours.registry import behaviour as behaviour
from frostline.behaviours.registry import register as register
