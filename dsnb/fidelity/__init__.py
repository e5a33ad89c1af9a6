"""Is the synthetic cohort like real people? Morphology, realism, and use, on unseen people.

Real people here were seen by no model, not even to choose when to stop: euploid scale, calibration
and test, DS test. Groups are compared with themselves, so their shares play no part.
"""

import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from dsnb import bids, dataset, further, record, rivals, vae
from dsnb.config import Release, Study
from dsnb.fidelity import morphology, realism
from dsnb.space import GROUPS, REGIONS, load_template

HELD_OUT = {"euploid": ("scale", "calibration", "test"), "DS": ("test",)}
KEYS = record.HEADLINE["08_fidelity"].split()[:8]  # the rest belongs to the privacy audit
LEAST = 5  # people a group and side, below which nothing is estimated


def held_out(table: pd.DataFrame, group: str) -> np.ndarray:
    """Return the rows of a group's people whom no model has seen."""
    return dataset.select(table, group, *HELD_OUT[group])


def generator_people(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the rows of each group that trained the diffusion model."""
    splits = {"euploid": "fit", "DS": "generator-fit"}
    return {group: dataset.select(table, group, split) for group, split in splits.items()}


def too_few(counts: dict[str, int]) -> str | None:
    """Return why these sides cannot be compared, or None when they can."""
    name = min(counts, key=counts.get)
    if counts[name] >= LEAST:
        return None
    return f"{counts[name]} people in {name}, {LEAST} needed"


def measure(root: Path, study: Study) -> None:
    """Make `morphology`: region volumes (ml) of synthetic people and of reconstructions."""
    settings = {
        "voxel_mm": study.grid.voxel_mm, "demons_iterations": study.maps.demons_iterations,
        "reconstructions": study.release.reconstructions,
    }  # fmt: skip
    parents = ("prepared", "deformation", "runs/vae", "synthetic")
    code = ("space", "rivals", "vae/metrics", "fidelity")
    product = record.begin(root, "morphology", "measure", settings, parents, code)
    if product.done:
        return
    template, _ = rivals.load_deformation(root)
    table, model = dataset.load_table(root), vae.load(root)
    real, synthetic = (dataset.load_volumes(root, name) for name in ("prepared", "synthetic"))
    rows = np.concatenate([held_out(table, g)[: study.release.reconstructions] for g in GROUPS])
    sides = {
        "reconstructed": (table.iloc[rows], lambda part: vae.reconstruct(model, real[rows[part]])),
        "synthetic": (dataset.load_table(root, "synthetic"), lambda part: synthetic[part]),
    }
    for name, (some, load) in sides.items():
        path = product.folder / f"{name}.tsv"
        if path.is_file():
            continue
        known = [
            np.exp(vae.region_logs(rivals.without_halo(load(part)), template, study))
            for part in vae.batches(len(some), rivals.BLOCK)
        ]
        found = pd.DataFrame(np.concatenate(known), columns=list(REGIONS)).round(5)
        found.insert(0, "participant_id", some["participant_id"].to_numpy())
        bids.write_table(path, found)
    product.finish()


def _ruler(root: Path, product: str, name: str) -> pd.DataFrame:
    """Read a table of region volumes (ml)."""
    table = bids.read_table(root / product / f"{name}.tsv")
    return table.astype(dict.fromkeys(REGIONS, float))


def _shape(root: Path, study: Study, table: pd.DataFrame, made: pd.DataFrame) -> tuple:
    """Return headline numbers and tables of the morphology, and log volumes of the two sides."""
    settings, registered = study.release, _ruler(root, "deformation", "volumes")
    unseen = np.concatenate([held_out(table, group) for group in GROUPS])
    known = np.concatenate([*generator_people(table).values()])
    real, teach = (morphology.people(table.iloc[rows], registered) for rows in (unseen, known))
    synthetic = morphology.people(made, _ruler(root, "morphology", "synthetic"))
    numbers, rows = morphology.compare_effects(real, synthetic, settings)
    drawn = _ruler(root, "morphology", "reconstructed")
    some = table.set_index("participant_id", drop=False).loc[drawn["participant_id"]]
    pair = (morphology.people(some, volumes) for volumes in (registered, drawn))
    top, both = morphology.ceiling(*pair, settings), {"real": real, "synthetic": synthetic}
    tables = {
        "effects": rows,
        "covariance": morphology.covariance(real, synthetic, settings),
        "age_slopes": morphology.age_slopes(both),
        "measured_age": morphology.measured_age(teach, both),
        "region_errors_pct": top.pop("region_errors_pct"),
    }
    sides = {
        name: {g: side.logs[side.ds == bool(code)] for code, g in enumerate(GROUPS)}
        for name, side in both.items()
    }
    return numbers | top, tables, (teach.logs, sides)


def _near(features: dict, settings: Release) -> tuple[float, float, float, list[dict]]:
    """Return KID over groups with its SE, its floor, and a row a group; {side: {group: array}}."""
    rows = []
    for group in GROUPS:
        real, made = (features[side][group] for side in ("real", "synthetic"))
        distance, error = realism.kid(real, made)
        rows.append({"group": group, "kid": distance, "kid_se": error}
                    | realism.density_coverage(real, made, settings.neighbours))  # fmt: skip
    mean = np.mean([row["kid"] for row in rows])
    error = np.sqrt(sum(row["kid_se"] ** 2 for row in rows)) / len(GROUPS)
    floor = np.quantile(realism.kid_floor(list(features["real"].values()), settings), 0.95)
    return mean, error, floor, rows


def _looks(spaces: dict, volumes: dict, settings: Release) -> tuple[dict, list[dict], list[dict]]:
    """Return the headline's KID (of voxels), a row a space and group, and diversity a group."""
    rows, numbers = [], {}
    for name, features in spaces.items():
        mean, error, floor, found = _near(features, settings)
        rows += [{"features": name, **row, "floor": floor} for row in found]
        if name == "voxels":
            limits = [mean - 1.96 * error, mean + 1.96 * error]
            numbers = {"kid": mean, "kid_ci": limits, "kid_floor": floor}
    pairs = []
    for group in GROUPS:
        alike = {side: realism.diversity(volumes[side][group], settings) for side in volumes}
        pairs.append(
            {"group": group}
            | {f"ms_ssim_{side}": value for side, (value, _) in alike.items()}
            | {f"ms_ssim_{side}_se": se for side, (_, se) in alike.items()}
        )
    return numbers, rows, pairs


def _use(features: dict, settings: Release) -> tuple[dict, dict[str, list[dict]]]:
    """Return what classifiers of synthetic and of real people reach on unseen real people."""
    sides = {
        name: (np.concatenate(list(side.values())),
               np.repeat([group == "DS" for group in side], [len(x) for x in side.values()]))
        for name, side in features.items()
    }  # fmt: skip
    rows, numbers = [], {}
    for key, name in (("tstr_bacc", "synthetic"), ("trtr_bacc", "trained_on")):
        value, limits = realism.utility(sides[name], sides["real"], settings)
        numbers |= {key: value, f"{key}_ci": limits}
        train = "synthetic" if name == "synthetic" else "real"
        rows.append({"trained on": train, "people": len(sides[name][1]), "bacc": value,
                     "low": limits[0], "high": limits[1]})  # fmt: skip
    more = realism.augmentation(sides["trained_on"], sides["synthetic"], sides["real"], settings)
    return numbers, {"utility": rows, "augmentation": more}


def compare(root: Path, study: Study) -> dict:
    """Compare the product `synthetic` with unseen real people; None, with a reason, for too few."""
    began, settings = time.perf_counter(), study.release
    table, made = dataset.load_table(root), dataset.load_table(root, "synthetic")
    sides = {
        "real": {group: held_out(table, group) for group in GROUPS},
        "trained_on": generator_people(table),
        "synthetic": {g: np.flatnonzero((made["group"] == g).to_numpy()) for g in GROUPS},
    }
    counts = {f"{side} {g}": len(r) for side, groups in sides.items() for g, r in groups.items()}
    reason = too_few(counts)
    if reason:
        tables = {"people": counts, "reasons": dict.fromkeys(KEYS, reason)}
        return {"headline": dict.fromkeys(KEYS), "tables": tables, "timing": {}}
    measure(root, study)
    further.encode(root, study)
    timing = {"measure_seconds": time.perf_counter() - began}
    real = dataset.load_volumes(root)
    source = {"real": real, "trained_on": real,
              "synthetic": dataset.load_volumes(root, "synthetic")}  # fmt: skip
    volumes = {s: {g: source[s][rows] for g, rows in sides[s].items()} for s in sides}
    voxels = {
        side: {g: realism.pooled(some, study.grid) for g, some in groups.items()}
        for side, groups in volumes.items()
    }
    space = public_features(root, study)
    voxels = {s: {g: space.transform(x) for g, x in of.items()} for s, of in voxels.items()}
    brain, taught = load_template(study.grid).brain, volumes.pop("trained_on")
    fine = {s: {g: realism.detail(x, brain) for g, x in of.items()} for s, of in volumes.items()}
    headline, tables, (teach, logs) = _shape(root, study, table, made)
    teach_fine = realism.detail(np.concatenate([*taught.values()])[::2], brain)
    spaces = {"voxels": voxels, "regions": realism.whiten(teach, logs),
              "detail": realism.whiten(teach_fine, fine)}  # fmt: skip
    looks, tables["realism"], tables["diversity"] = _looks(spaces, volumes, settings)
    use, more = _use(voxels, settings)
    tables |= more
    timing["compare_seconds"] = time.perf_counter() - began - timing["measure_seconds"]
    headline = record.plain(headline | looks | use)
    few = "too few reconstructed people for an interval"
    reasons = {key: few for key, value in headline.items() if value is None}
    tables |= {"people": counts, "reasons": reasons}
    return {"headline": headline, "tables": record.plain(tables), "timing": timing}


def public_features(root: Path, study: Study, components: int = 0) -> PCA:
    """Return features of voxels as public people have them, who are on no side of any comparison.

    As many as `components`, by default those of the settings; the further people must be there.
    """
    wide = _public_space(root, study, record.require(root, further.LATENTS))
    return realism.first(wide, components or study.release.components)


@lru_cache(maxsize=1)
def _public_space(root: Path, study: Study, key: str) -> PCA:
    """Fit the widest space that is asked for, once a process; `key` is that of the people."""
    table, volumes, _ = further.load(root, study)
    rows = np.flatnonzero(table["role"] == "public")
    return realism.fit_features(volumes[rows], study.grid, study.release.attack_components)
