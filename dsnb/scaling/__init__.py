"""Benchmarks: networks against CPU time, and data-parallel training."""

from dsnb.scaling.cost import bench_cost, calculate, measure
from dsnb.scaling.parallel import CODE, bench, gigaflop, race, resumes_identically
from dsnb.scaling.speed import bench_speed

__all__ = [
    "CODE",
    "bench",
    "bench_cost",
    "bench_speed",
    "calculate",
    "gigaflop",
    "measure",
    "race",
    "resumes_identically",
]
