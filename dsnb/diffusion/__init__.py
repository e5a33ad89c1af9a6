"""Latents -> new brains of a wanted group, stage, age and sex: train, draw, sample, evaluate."""

from dsnb.diffusion.components import FEWEST_DS, generator_rows, restore
from dsnb.diffusion.flow import CONDITIONS, Flow, Teachers, condition, refit, velocity_error
from dsnb.diffusion.guidance import guidance_table
from dsnb.diffusion.quality import evaluate
from dsnb.diffusion.samplers import SAMPLERS, draw
from dsnb.diffusion.synthesis import (
    Asked,
    bootstrap_people,
    parse_ages,
    sample,
    sample_more,
)
from dsnb.diffusion.task import CODE as FLOW
from dsnb.diffusion.task import FlowTask, load, study_task, train
