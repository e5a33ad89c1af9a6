"""The phantom on disk: BIDS files, twins, shams, repeats, native scans, and the truth."""

import json
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch

from dsnb import bids, record, space
from dsnb.config import Study
from dsnb.phantom import fields
from dsnb.phantom.fields import LATTICE
from dsnb.phantom.people import SITES, draw_people, individual_velocities, revisit, stream
from dsnb.phantom.render import render, scan, scan_native

PHANTOM_VERSION = "1.1"  # frozen: noise, contrast, variation and targets
HIDDEN = ("number", "factor", "onset_years", "progress")  # of a person; truth.tsv has them
LOG_STEP = 1 / 4000  # stored unit of log-Jacobians and intensity changes, far below the noise


def _paths(row: dict) -> dict[str, str]:
    """Return a person's files relative to the raw folder."""
    name, session = row["participant_id"].removesuffix("ses2"), ""
    if row["session"] != "n/a":
        session = f"ses-{row['session']}"
    truth = f"derivatives/truth/{row['participant_id']}/anat/{row['participant_id']}_desc-"
    stem = "_".join(part for part in (name, session, "T1w.nii.gz") if part)
    return {
        "recorded": str(Path(name, session, "anat", stem)),
        "twin": f"{truth}twin_T1w.nii.gz",
        "sham": f"{truth}sham_T1w.nii.gz",
        "truth": f"{truth}truth_logjac.nii.gz",
        "intensity": f"{truth}truth_intensity.nii.gz",
        "native": f"derivatives/native/{name}/anat/{name}_T1w.nii.gz",
    }


def _save(path: Path, values: np.ndarray, affine, step: float, note: dict) -> None:
    about = {"SkullStripped": True, "Phantom": PHANTOM_VERSION, **note}
    bids.save_volume(path, values, affine, about, step)


@fields.one_thread
def _write_person(raw: Path, row: dict, study: Study, kinds: tuple[str, ...]) -> None:
    """Write one visit's scan and what else is asked of it; skip what is there.

    The twin is the same person without the disease. In DS the truth lies beside it in the patient's
    grid: the log-Jacobian, and the intensity change of the noise-free volumes.
    """
    torch.set_num_threads(1)
    paths, grid, seed = _paths(row), study.grid, study.cohort.seed
    done = bids.sidecar_of(raw / paths["recorded"])
    if done.is_file():
        return
    note = {"Seed": seed, "Number": row["number"], "SpatialReference": space.SPACE}
    step = SITES[row["site"]][0] / 20000  # of the scanner's unit
    regions, shape = individual_velocities(row, seed)
    outline = fields.exponentiate(-shape)
    own = fields.compose(fields.exponentiate(-regions), outline)
    backward, grow = own, fields.exponentiate(shape)
    before = after = fields.compose(grow, fields.exponentiate(regions))
    healthy = {**row, "factor": 0.0}
    if row["group"] == "DS":
        disease, after = fields.fit_disease(row["progress"], row["factor"], regions, grow, before)
        backward = fields.compose(fields.exponentiate(-regions - disease), outline)
        truth, note["FoldedVoxels"] = fields.log_jacobian(fields.compose(before, backward), grid)
    clean = render(backward, row, study, grid)
    if row["group"] == "DS":
        without = render(own, healthy, study, grid)
        unit = {"Units": "log volume ratio, patient over twin"}
        if "twin" in kinds:
            _save(raw / paths["twin"], scan(without, row, study), grid, step, note)
        _save(raw / paths["truth"], truth, grid, LOG_STEP, {**note, **unit})
        unit = {"Units": "white matter near 0.85, patient minus twin at the same voxel"}
        _save(raw / paths["intensity"], clean - without, grid, LOG_STEP, {**note, **unit})
    if "sham" in kinds:
        rng = stream(seed, row, "sham")
        velocity = fields.sham_velocity(study.cohort.severity * fields.draw_factor(rng), rng)
        other = fields.compose(fields.exponentiate(-velocity), own)
        volume = scan(render(other, row, study, grid), row, study)
        _save(raw / paths["sham"], volume, grid, step, note)
    if "native" in kinds:
        volume, affine, to_mni = scan_native(backward, row, study)
        posed = {**note, "SpatialReference": "native", "NativeToMNI": to_mni}
        _save(raw / paths["native"], volume, affine, step, posed)
    note |= {"RegionMlBefore": fields.measure(before), "RegionMlAfter": fields.measure(after)}
    folded = int((fields.jacobian(backward, grid) <= 0).sum())
    note["FoldedVoxels"] = note.get("FoldedVoxels", 0) + folded
    _save(raw / paths["recorded"], scan(clean, row, study), grid, step, note)


def plan_visits(study: Study) -> list[tuple[dict, tuple[str, ...]]]:
    """Return every visit's row, and which kinds of scan it gets beside the recorded one.

    The last euploids get a sham, the first of each group a native scan; the last of each group
    come a second time.
    """
    asked, people = study.cohort, draw_people(study.cohort)
    visits = []
    for group, extra in (("euploid", ()), ("DS", ("twin",))):
        rows = people[people["group"] == group].to_dict("records")
        shams = len(rows) - asked.sham if group == "euploid" else len(rows)
        for place, row in enumerate(rows):
            kinds = extra + ("sham",) * (place >= shams)
            visits.append((row, kinds + ("native",) * (place < asked.native // 2)))
        again = rows[max(len(rows) - asked.repeat, 0) :]
        visits += [(revisit(asked, row), ()) for row in again]
    return visits


def make_cohort(root: Path, study: Study, processes: int = 2) -> None:
    """Write the phantom cohort as BIDS into `raw`; twins, shams, native scans, truth beside it.

    A killed run goes on where it stopped; files do not depend on the number of processes.
    """
    settings = {"cohort": record.plain(vars(study.cohort)), "grid": vars(study.grid)}
    product = record.begin(root, "raw", "phantom", settings, (), ("phantom", "space", "bids"))
    if product.done:
        return
    visits = plan_visits(study)
    space.region_masks(LATTICE)  # one process fills the cache
    work = (
        joblib.delayed(_write_person)(product.folder, row, study, kinds) for row, kinds in visits
    )
    for done, _ in enumerate(joblib.Parallel(processes, return_as="generator")(work), start=1):
        record.progress("phantom", done, len(visits))
    _write_tables(product.folder, visits)
    product.finish()


def _write_tables(raw: Path, visits: list[tuple[dict, tuple[str, ...]]]) -> None:
    """Write participants.tsv (every kind of scan), truth.tsv and the dataset descriptions."""
    rows = [
        _as_kind(raw, row, kind)
        for row, kinds in visits
        for kind in (row["kind"], *kinds)
    ]  # fmt: skip
    table = pd.DataFrame(rows).drop(columns=list(HIDDEN))
    bids.write_table(raw / "participants.tsv", table)
    truth = pd.DataFrame([_truth_row(raw, row) for row, _ in visits])
    bids.write_table(raw / "derivatives/truth/truth.tsv", truth)
    columns = bids.OF_PERSON | bids.OF_VISIT | bids.OF_SCAN
    columns |= {"head_ap": "native length over the template's; _lr width, _si height"}
    bids.write_dictionary(raw / "participants.json", columns)
    bids.describe(raw, "dsnb digital phantom cohort")
    for kind in ("truth", "native"):
        name = f"Digital phantom cohort: {kind}"
        bids.describe(raw / "derivatives" / kind, name, "bids:raw")


def _as_kind(raw: Path, row: dict, kind: str) -> dict:
    """Return a visit's row of participants.tsv as one kind of scan."""
    path = _paths(row)["recorded" if kind == "repeat" else kind]
    files = {"t1w": path, "sha": record.digest(raw / path)}
    if kind in ("recorded", "repeat"):
        return {**row, **files}
    name = row["participant_id"]
    changed = {**files, "participant_id": name + kind, "kind": kind, "origin": name}
    if kind == "twin":
        changed |= {"group": "euploid", "stage": "n/a", "disability": "n/a", "cognition": "n/a"}
    return {**row, **changed}


def _truth_row(raw: Path, row: dict) -> dict:
    """Return one visit's hidden numbers, folded voxels and region ml before, after and wanted."""
    sidecar = json.loads(bids.sidecar_of(raw / _paths(row)["recorded"]).read_text())
    before, after = np.array(sidecar["RegionMlBefore"]), np.array(sidecar["RegionMlAfter"])
    sick = row["group"] == "DS"
    wanted = before * np.exp(fields.targets(row["progress"], row["factor"]) if sick else 0)
    truth = {name: row[name] for name in ("participant_id", "stage", *HIDDEN[1:])}
    truth |= {"onset_years": truth["onset_years"] if sick else "n/a"}
    truth |= {"folded_voxels": sidecar["FoldedVoxels"]}
    for name, *values in zip(space.REGIONS, before, after, wanted):
        truth |= {f"{name}_{when}": v for when, v in zip(("before", "after", "wanted"), values)}
    return truth
