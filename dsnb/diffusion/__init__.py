"""Latents -> new brains of a wanted group, stage, age and sex: train, draw, sample, evaluate."""

from dsnb.diffusion.flow import CODE as FLOW
from dsnb.diffusion.flow import (
    CONDITIONS,
    Flow,
    FlowTask,
    condition,
    draw,
    generator_rows,
    load,
    restore,
    train,
)
from dsnb.diffusion.quality import evaluate, guidance_table
from dsnb.diffusion.synthesis import bootstrap_people, sample
