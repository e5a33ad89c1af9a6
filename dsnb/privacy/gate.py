"""The gate: an audited synthetic cohort leaves as a BIDS dataset, or not at all.

What may leave are scans without a skull, under new headers, and tables of what was asked for; the
audit's report goes with them. Samples that the audit flagged or that no anatomy allows stay. The
weights go only where no attack tells who trained them; the latents of people never go.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import save_file

from dsnb import bids, checkpoints, dataset, record
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.space import REGIONS, SPACE

MOST_SD = 5.0  # of real people's log region volumes, beyond which a sample is no anatomy [E]
PHANTOM_TERMS = "CC0-1.0; the anatomy is that of the ICBM152 2009a template, whose notice applies"
COLUMNS = {
    "participant_id": "a drawn brain, nobody's", "group": "requested: euploid or DS",
    "stage": "requested stage of Alzheimer's disease, n/a for euploid",
    "age": "requested age in years", "sex": "requested sex, F or M",
}  # fmt: skip
CARD = """# {name}

{count} synthetic T1-weighted brains without skull, {shape} voxels of {mm:g} mm in {space}.
Nobody was scanned for them: models of people drew them, from requests for group, stage, age and
sex.

{groups}

Left out of {drawn} drawn: {dropped}.

## Audit

{verdict}. Planted copies recalled {copies_recalled:.2f}; false alarms {false_alarms:.3f}; near
copies {near_copies:.3f}; upper bound of the AUC of a membership attack {attack_auc_upper:.2f}; an
over-fitted model was caught at {overfit_attack_auc:.2f}. `audit.json` holds all of it. No evidence
of copying is no proof of privacy. {phantom}

## Use

For methods, teaching and tests. Not for diagnosis, and no evidence about Down syndrome by itself:
an effect that is found here was put in by the model or learnt by it. Terms: {terms}
"""
MODEL_CARD = """# Models behind {name}

A VAE of brains and a generator on its latents ({grid}). {state}

| attack | on | members | others | AUC | upper 95 % | found at 1 % |
| --- | --- | --- | --- | --- | --- | --- |
{attacks}

An AUC of 0.5 tells nobody. Share of training people whom a flagged sample is near: {near:.3f}.
Trained on {data}; terms: {terms}
"""
WEIGHTS = {"runs/vae": "vae", "runs/diffusion": "diffusion"}
ASIDE = ("audit.json", "MODEL.md", "weights")  # of a release that BIDS does not know
ON_PHANTOM = "The models learnt on a digital phantom: the audit proves the machinery, not privacy."


def terms_of(root: Path, raw: Path | None) -> str:
    """Return the licence under which samples of a study may go; refuses (E-LICENCE) without one."""
    if record.read_mark(root)["data"] == "phantom":
        return PHANTOM_TERMS
    path = raw / "dataset_description.json" if raw else None
    terms = json.loads(path.read_text()).get("License") if path and path.is_file() else None
    if not terms:
        fix = "give the BIDS folder (--raw) whose dataset_description.json names its License"
        raise BadInput("E-LICENCE", "release", "License", terms, "the terms of the sources", fix)
    return str(terms)


def implausible(volumes: np.ndarray, made: pd.DataFrame, real: pd.DataFrame) -> np.ndarray:
    """Return which samples (N,) no anatomy allows.

    A voxel that is no number, an empty volume, or a region far outside the real people's spread.
    `made` and `real` hold region volumes in ml, `made` in the order of `volumes` (N, X, Y, Z).
    """
    logs, known = (np.log(table[list(REGIONS)].to_numpy(float)) for table in (made, real))
    apart = np.abs(logs - known.mean(0)) / known.std(0, ddof=1)
    empty = np.array([not np.isfinite(v).all() or not v.any() for v in volumes])
    return empty | ~(apart <= MOST_SD).all(1)


def _refusal(root: Path, results: dict) -> list[str]:
    """Return why nothing may leave: a failed audit, or one of other samples."""
    if results["headline"]["release"] is not True:
        return results["tables"]["audit_failed"] or ["the audit did not pass"]
    now = record.require(root, "synthetic")
    if results["provenance"]["parents"]["synthetic"] != now:
        return ["the samples were drawn again after the audit: run notebooks/08_fidelity.ipynb"]
    return []


def release(root: Path, study: Study, out: Path, raw: Path | None = None) -> list[str]:
    """Write the synthetic cohort to the new folder `out`; return the reasons if it may not leave.

    Refuses (E-EXISTS) a folder that is there, and (E-LICENCE) sources without terms.
    """
    results = record.read_results(root, "08_fidelity")
    reasons = _refusal(root, results)
    if reasons:
        return reasons
    if out.exists():
        raise BadInput("E-EXISTS", out.name, "the folder", "there", "a new folder", "name another")
    terms, aside = terms_of(root, raw), out.with_name(f".{out.name}.{os.getpid()}")
    table, volumes = (
        load(root, "synthetic") for load in (dataset.load_table, dataset.load_volumes)
    )
    real = bids.typed(bids.read_table(root / "deformation" / "volumes.tsv"))
    record.require(root, "morphology")
    made = bids.typed(bids.read_table(root / "morphology" / "synthetic.tsv"))
    made = made.set_index("participant_id").loc[table["participant_id"]]
    near = {entry["participant_id"] for entry in results["tables"]["audit_flagged"]}
    left_out = {
        "near a training person": table["participant_id"].isin(near).to_numpy(),
        "implausible": implausible(volumes, made, real),
    }
    kept = np.flatnonzero(~np.any([*left_out.values()], axis=0))
    if not len(kept):
        return [f"none of {len(table)} samples is left: all are near copies or implausible"]
    try:
        for row in kept:
            person = table.iloc[row]
            name = f"{person['participant_id']}_space-{SPACE}_desc-synthetic_T1w.nii.gz"
            sidecar = {"SpatialReference": SPACE, "SkullStripped": True, "Synthetic": True}
            path = aside / person["participant_id"] / "anat" / name
            bids.save_volume(path, volumes[row].astype(np.float32), study.grid, sidecar, step=1e-4)
        _describe(aside, table.iloc[kept], left_out, results, study, terms, len(table))
        _add_models(aside, root, results, study, terms)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # nothing half-written stays
    return []


def release_in_study(root: Path, study: Study, raw: Path | None = None) -> str:
    """Write the release of a study beside its products, as its page does; say what came of it.

    An older release goes first: a failed audit leaves none.
    """
    out = root / "release"
    shutil.rmtree(out, ignore_errors=True)
    reasons = release(root, study, out, raw)
    if reasons:
        return "Nothing was released: " + "; ".join(reasons)
    scans = len([*out.glob("sub-*/anat/*.nii.gz")])
    return f"{scans} synthetic brains were released as BIDS into the folder `release`."


def _describe(
    folder: Path, table: pd.DataFrame, left_out: dict, results: dict, study: Study, terms: str,
    drawn: int,
) -> None:  # fmt: skip
    """Write the tables and texts of a release beside its scans."""
    name = f"dsnb synthetic brains after {results['data']}"
    bids.describe(folder, name, "models of dsnb; no person's scan")
    path = folder / "dataset_description.json"
    record.write_json(path, json.loads(path.read_text()) | {"License": terms})
    bids.write_table(folder / "participants.tsv", table[list(COLUMNS)])
    bids.write_dictionary(folder / "participants.json", COLUMNS)
    counts = table.groupby("group")["age"].agg(["size", "min", "max"])
    groups = "\n".join(
        f"- {group}: {row['size']:.0f}, {row['min']:.0f} to {row['max']:.0f} years"
        for group, row in counts.iterrows()
    )
    dropped = ", ".join(f"{int(rows.sum())} {why}" for why, rows in left_out.items())
    phantom = ON_PHANTOM if results["data"] == "phantom" else ""
    card = CARD.format(
        name=name, count=len(table), shape=" x ".join(map(str, study.grid.shape)), space=SPACE,
        mm=study.grid.voxel_mm, groups=groups, drawn=drawn, dropped=dropped, phantom=phantom,
        terms=terms, verdict=results["tables"]["audit_verdict"].capitalize(),
        **{key: results["headline"][key] for key in ("copies_recalled", "false_alarms",
           "near_copies", "attack_auc_upper", "overfit_attack_auc")},
    )  # fmt: skip
    record.write_text(folder / "README.md", card)
    record.write_text(folder / "LICENSE", f"{terms}\n")
    record.write_text(folder / ".bidsignore", "".join(f"{name}\n" for name in ASIDE))
    record.write_text(folder / "CHANGES", f"1.0.0\n - First release, {len(table)} brains.\n")
    audit = {key: value for key, value in results["tables"].items() if key.startswith("audit_")}
    audit["audit_left_out"] = {why: int(rows.sum()) for why, rows in left_out.items()}
    report = {"headline": results["headline"], **audit, "provenance": results["provenance"]}
    record.write_json(folder / "audit.json", report)


def _add_models(folder: Path, root: Path, results: dict, study: Study, terms: str) -> None:
    """Write the model card; and the averaged weights as safetensors where no attack tells members.

    They hold plain tensors, and the settings as text beside them: nothing that could run.
    """
    attacks, allowed = results["tables"]["audit_attacks"], results["headline"]["release_weights"]
    state = "The weights lie in `weights/`." if allowed else (
        "The weights are not here: an attack tells who trained them.")  # fmt: skip
    rows = [f"| {row['attack']} | {row['on']} | {row['members']} | {row['others']} | "
            f"{row['auc']:.2f} | {row['upper']:.2f} | {row['found_at_1_pct']:.2f} |"
            for row in attacks]  # fmt: skip
    card = MODEL_CARD.format(
        name=f"dsnb synthetic brains after {results['data']}", state=state, data=results["data"],
        grid=f"{study.grid.voxel_mm:g} mm", attacks="\n".join(rows), terms=terms,
        near=results["tables"]["audit_training_people_near"],
    )  # fmt: skip
    record.write_text(folder / "MODEL.md", card)
    for run, name in WEIGHTS.items() if allowed else ():
        payload = checkpoints.require(root / run)
        weights = {key: value.contiguous() for key, value in payload["ema"].items()}
        (folder / "weights").mkdir(exist_ok=True)
        save_file(weights, folder / "weights" / f"{name}.safetensors")
        record.write_json(folder / "weights" / f"{name}.json", payload["identity"]["settings"])
