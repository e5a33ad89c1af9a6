"""The training engine: one loop for VAE and diffusion, for one rank and many, whole or resumed.

`state` holds all that sets a number; `loop`, `log`, `watch` and `clock` keep a run alive, and tell.
"""

from dsnb.checkpoints import load_weights
from dsnb.distributed import Stopped
from dsnb.training.log import curve, read_stats, wall_seconds
from dsnb.training.loop import train, train_product
from dsnb.training.state import State, Task, learning_rate, step
