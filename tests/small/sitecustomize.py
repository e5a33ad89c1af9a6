"""What a Python of a tested job reads before anything else: `smoke` becomes smaller, or slow.

Jobs know a study by its preset's name, so a test that wants another one has to come in here.
"""

import os
import time
from pathlib import Path

from dsnb import config
from dsnb.config import Cohort, Diffusion, Further, Search, Training, Vae, replace
from dsnb.record import ledger
from dsnb.space import Grid

VOLUMES = int(os.environ.get("TEST_VOLUMES", 48))
PLAN = Training(volumes=VOLUMES, batch=4, lr=0.01, checkpoint_every=24, validate_every=24)
SHORT = Training(volumes=64, batch=8, lr=1e-4, checkpoint_every=64, validate_every=64)
LATENT = Vae(width=8, blocks=1, channels=2, training=PLAN)
STUDIES = {
    "tiny": replace(config.SMOKE, grid=Grid(12.0, (16, 16, 16)), vae=LATENT),
    "walk": replace(
        config.SMOKE,
        grid=Grid(8.0, (20, 24, 20)),
        cohort=Cohort(euploid=16, ds=8, sham=2, repeat=0, native=0),
        vae=LATENT,
        diffusion=Diffusion(basis="members", components=4, width=16, blocks=1, steps=2,
                            synthetic=2, training=SHORT),
        further=Further(public=2, reference=2, euploid=2, ds=2),
        search=Search(trials=2, volumes=8),
    ),
}  # fmt: skip

if "TEST_STUDY" in os.environ:
    config.PRESETS["smoke"] = STUDIES[os.environ["TEST_STUDY"]]
    ledger.LEDGERS = Path(os.environ["DSNB_DATA"])  # rows of a test are no results of the book

if "TEST_STEP_S" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
    import torch

    def slowly(self, closure=None, step=torch.optim.AdamW.step):
        """Sleep before a step: the first start of a job is long, and leaves the cores to others."""
        time.sleep(float(os.environ["TEST_STEP_S"]))
        return step(self, closure)

    torch.optim.AdamW.step = slowly
