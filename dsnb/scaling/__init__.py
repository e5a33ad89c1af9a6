"""Benchmarks: networks against CPU time, and data-parallel training."""

from dsnb.scaling.parallel import CODE, bench, gigaflop, race, resumes_identically
from dsnb.scaling.speed import bench_speed
