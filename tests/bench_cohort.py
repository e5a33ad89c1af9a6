"""Benchmarks of the phantom: `python tests/bench_cohort.py [folding] [seconds] [realism FOLDER]`.

`folding` draws 500 people and counts folded voxels and missed targets; `seconds` times 200 euploids
and 200 people with twins; both add a row to book/results/ledger/01_cohort.jsonl. `realism` compares
the phantom with registered open scans (BIDS, MNI) and writes book/results/real/realism.json and
book/reference/realism.png, which page 01 reads.
"""

import json
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import psutil

from dsnb import bids, config, figures, phantom, record, space
from dsnb.phantom import fields, people, render
from dsnb.space import Grid
from dsnb.volumes.scan import normalise, place

SMALL = config.PRESETS["small"]
# How people vary: components after which, and bands in which, a cohort's spectrum is read.
COMPONENTS = (0, 1, 2, 5, 10, 20, 30, 50, 70)
BANDS_PER_MM = (0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.13, 0.167)
FOLDS, BOOTSTRAPS = 5, 1000
LEDGER = record.HOME.parent / "book/results/ledger/01_cohort.jsonl"


def note(benchmark: str, **found: float) -> None:
    """Print a benchmark's numbers and add them to the ledger, with the code they belong to."""
    about = {"phantom_version": phantom.PHANTOM_VERSION, **record.provenance(benchmark, {}, {})}
    row = {"benchmark": benchmark, **found, "code": record.code_digest("phantom", "space"), **about}
    print({"benchmark": benchmark, **record.plain(found)})
    LEDGER.parent.mkdir(parents=True, exist_ok=True)
    with LEDGER.open("a") as file:
        file.write(json.dumps(record.plain(row)) + "\n")


def check_person(row: dict, seed: int) -> tuple[int, float]:
    """Return one person's folded voxels at 3 mm and the largest gap to a target (points)."""
    regions, shape = people.individual_velocities(row, seed)
    outline, grow = fields.exponentiate(-shape), fields.exponentiate(shape)
    before = fields.compose(grow, fields.exponentiate(regions))
    disease, gap = np.zeros_like(regions), 0.0
    if row["group"] == "DS":
        disease, after = fields.fit_disease(row["progress"], row["factor"], regions, grow, before)
        reached = fields.measure(after) / fields.measure(before)
        wanted = np.exp(fields.targets(row["progress"], row["factor"]))
        gap = 100 * float(np.abs(reached - wanted).max())
    backward = fields.compose(fields.exponentiate(-regions - disease), outline)
    return int((fields.jacobian(backward, SMALL.grid) <= 0).sum()), gap


def folding(severities=(1.0, 2.0)) -> None:
    """Print folded voxels and gaps over 250 euploids and 250 people with DS, at two severities."""
    for severity in severities:
        cohort = config.Cohort(euploid=250, ds=250, severity=severity)
        rows = people.draw_people(cohort).to_dict("records")
        work = (joblib.delayed(check_person)(row, cohort.seed) for row in rows)
        found = np.array(joblib.Parallel(2)(work))
        note("folding", severity=severity, people=len(rows), folded_voxels=int(found[:, 0].sum()),
             people_folded=int((found[:, 0] > 0).sum()), largest_gap_points=found[:, 1].max(),
             mean_largest_gap_points=found[250:, 1].mean())  # fmt: skip


def weigh(peak: list[float], over: threading.Event) -> None:
    """Keep the highest memory (GB, PSS) of this process and its children in `peak`."""
    while not over.wait(0.2):
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        with suppress(psutil.Error):  # one ended while it was weighed
            peak[0] = max(peak[0], sum(one.memory_full_info().pss for one in family) / 1e9)


def seconds() -> None:
    """Print seconds and peak memory of 200 euploids, and of 200 people with DS and twins."""
    for euploid, ds in ((200, 0), (0, 200)):
        cohort = config.Cohort(euploid=euploid, ds=ds, sham=0, repeat=0, native=0)
        peak, over = [0.0], threading.Event()
        watch = threading.Thread(target=weigh, args=(peak, over))
        watch.start()
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            phantom.make_cohort(Path(folder), replace(SMALL, cohort=cohort), processes=2)
            spent = time.perf_counter() - begun
        over.set()
        watch.join()
        note("seconds", euploid=euploid, ds_with_twins=ds, seconds=spent, peak_gb=peak[0])


def prepare(volume: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    """Bring one scan in MNI space onto the 3 mm grid, masked and on one intensity scale."""
    placed = place(volume, affine, SMALL.grid, None, name)[0]
    return normalise(placed, SMALL.grid, name)[0].astype(np.float32)


def draw_phantom(count: int, ages: tuple[float, float]) -> np.ndarray:
    """Draw and prepare euploids of one site inside an age range, (N, X, Y, Z)."""
    rows = people.draw_people(SMALL.cohort).query("group == 'euploid' and site == 'public1'")
    drawn = []
    for row in rows[rows["age"].between(*ages)].head(count).to_dict("records"):
        own, shape = people.individual_velocities(row, SMALL.cohort.seed)
        backward = fields.compose(fields.exponentiate(-own), fields.exponentiate(-shape))
        scan = render.scan(render.render(backward, row, SMALL, SMALL.grid), row, SMALL)
        drawn.append(prepare(scan, SMALL.grid.affine, row["participant_id"]))
    return np.stack(drawn)


def spectrum(volumes: np.ndarray, brain: np.ndarray, grid: Grid, seed: int = 0) -> dict:
    """Describe how prepared volumes (N, X, Y, Z) of euploids vary around their mean in the brain.

    `residual` is the share of the RMS departure of people who were left out that principal
    components of the others and their mirror images do not hold, with a 95 % interval over
    people; `power` the spectral density of the departures over spatial frequency.
    """
    both = brain & brain[::-1]
    people, mirrored = volumes[:, both], volumes[:, ::-1][:, both]
    order = np.random.default_rng(seed).permutation(len(volumes))
    left = np.full((len(volumes), len(COMPONENTS)), np.nan)
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        known = np.setdiff1d(order, out)
        train = np.concatenate([people[known], mirrored[known]]).astype(np.float32)
        mean = train.mean(0)
        _, sizes, components = np.linalg.svd(train - mean, full_matrices=False)
        components = components[sizes > 1e-4 * sizes[0]]
        departure = people[out] - mean
        total = (departure**2).sum(1)
        held = np.cumsum((departure @ components.T) ** 2, axis=1)
        for column, count in enumerate(COMPONENTS):
            kept = held[:, min(count, held.shape[1]) - 1] if count else 0
            left[out, column] = (total - kept) / both.sum()
    rng = np.random.default_rng(seed)
    draws = [left[rng.integers(0, len(left), len(left))].mean(0) for _ in range(BOOTSTRAPS)]
    shares = [np.sqrt(draw / draw[0]) for draw in draws]
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    residual = np.sqrt(left.mean(0) / left.mean(0)[0])
    return {
        "people": len(volumes), "rms": float(np.sqrt(left.mean(0)[0])),
        "mean": float(volumes[:, both].mean()), "sd": float(volumes[:, both].std(1).mean()),
        "residual": [
            {"components": k, "residual": residual[i], "low": low[i], "high": high[i]}
            for i, k in enumerate(COMPONENTS)
        ],
        "power": _power((volumes - volumes.mean(0)) * both, grid),
    }  # fmt: skip


def _power(departures: np.ndarray, grid: Grid) -> list[dict]:
    """Return mean spectral density of departures (N, X, Y, Z) in bands of cycles per mm."""
    density = (np.abs(np.fft.rfftn(departures, axes=(1, 2, 3))) ** 2).mean(0) / departures[0].size
    axes = [np.fft.fftfreq(n, grid.voxel_mm) for n in grid.shape[:2]]
    axes.append(np.fft.rfftfreq(grid.shape[2], grid.voxel_mm))
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    return [
        {"per_mm": (low + high) / 2, "power": density[(radius >= low) & (radius < high)].mean()}
        for low, high in zip(BANDS_PER_MM, BANDS_PER_MM[1:])
    ]


def compare(folder: Path) -> None:
    """Write spectra and slices of real scans and as many phantom euploids of their ages."""
    table, _ = bids.read_participants(folder)
    paths = sorted(folder.glob("sub-*/anat/*_T1w.nii.gz"))
    real = np.stack([prepare(*bids.load_volume(path), path.name) for path in paths])
    ages = table["age"].astype(float)
    drawn = draw_phantom(len(real), (ages.min(), ages.max()))
    brain = space.load_template(SMALL.grid).brain
    found = {}
    for name, stack in (("real", real), ("phantom", drawn)):
        found[name] = spectrum(stack, brain, SMALL.grid)
        snr = [normalise(volume, SMALL.grid, name)[1]["snr"] for volume in stack]
        found[name]["snr_median"] = float(np.median(snr))
    found["data"] = folder.resolve().name
    found["phantom_version"] = phantom.PHANTOM_VERSION
    found["provenance"] = record.provenance("tests/bench_cohort.py realism", {}, {})
    book = record.HOME.parent / "book"
    shown = {f"real, person {k + 1}": real[k] for k in (0, 20, 40)}
    shown |= {f"phantom, person {k + 1}": drawn[k] for k in (0, 20, 40)}
    shown |= {"mean of real": real.mean(0), "mean of phantom": drawn.mean(0)}
    picture = book / "reference/realism.png"
    figures.plot_slices(shown, SMALL.grid.affine).savefig(picture)
    found["provenance"]["figures"] = {picture.name: record.digest(picture)}
    record.write_json(book / "results/real/realism.json", record.plain(found))


if __name__ == "__main__":
    asked = sys.argv[1:] or ["folding", "seconds"]
    if "folding" in asked:
        folding()
    if "seconds" in asked:
        seconds()
    if "realism" in asked:
        compare(Path(asked[asked.index("realism") + 1]))
