"""The 01 page's numbers of the phantom: who there is, targets against what was reached, spread."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import bids, record, space
from dsnb.config import Study
from dsnb.phantom import fields
from dsnb.phantom.people import FAMILIES, REPEAT_YEARS
from dsnb.phantom.scans import PHANTOM_VERSION


def summarise(root: Path, study: Study) -> dict:
    """Return headline and tables: people, folding, wanted and reached changes, spread, repeats."""
    record.require(root, "raw")
    people, truth = (
        bids.typed(bids.read_table(root / "raw" / name))
        for name in ("participants.tsv", "derivatives/truth/truth.tsv")
    )
    recorded = people[people["kind"] == "recorded"]
    known = truth.merge(recorded[["participant_id", "group", "age", "sex"]], on="participant_id")
    regions, counts = region_rows(known), recorded["group"].value_counts()
    headline = {
        "subjects": len(recorded), "euploid": int(counts.get("euploid", 0)),
        "ds": int(counts.get("DS", 0)), "folded_voxels": int(truth["folded_voxels"].sum()),
        "target_error_points": max(row["gap_points"] for row in regions),
        "phantom_version": PHANTOM_VERSION,
    }  # fmt: skip
    cohorts = recorded.groupby(["cohort", "site", "group"])["age"].agg(["size", "mean", "std"])
    tables = {
        "regions": regions,
        "stages": recorded["stage"].value_counts().to_dict(),
        "cohorts": cohorts.fillna(0).reset_index().to_dict("records"),
        **spread_rows(known[known["group"] == "euploid"]),
        "repeats": repeat_rows(truth, people[people["kind"] == "repeat"]),
        "reasons": {},
    }
    return record.plain({"headline": headline, "tables": tables, "timing": {}})


def region_rows(truth: pd.DataFrame) -> list[dict]:
    """Return wanted and reached change of every region in DS; the gap is the worst stage's mean."""
    affected, rows = truth[truth["stage"] != "n/a"], []
    for name in space.REGIONS:
        before = affected[f"{name}_before"]
        wanted, reached = (
            100 * (affected[f"{name}_{when}"] / before - 1) for when in ("wanted", "after")
        )
        gaps = (reached - wanted).groupby(affected["stage"]).mean().abs()
        rows.append({
            "region": name, "base_target_pct": fields.CONSTANTS.loc[name, "ds"],
            "wanted_pct": wanted.mean(), "reached_pct": reached.mean(),
            "sd_pct": reached.std(ddof=0), "gap_points": gaps.max(), "people": len(affected),
        })  # fmt: skip
    return rows


def spread_rows(euploids: pd.DataFrame) -> dict[str, list[dict]]:
    """Return every region's SD between euploids (log-volume, age and sex taken out), and kinship.

    Too few people to take age and sex out give empty tables.
    """
    if len(euploids) < 10:
        return {"spread": [], "kinship": []}
    design = np.column_stack([np.ones(len(euploids)), space.covariates(euploids)])
    volumes = np.log(euploids[[f"{name}_before" for name in space.REGIONS]].to_numpy(float))
    left = volumes - design @ np.linalg.lstsq(design, volumes, rcond=None)[0]
    sd = np.sqrt((left**2).sum(0) / (len(left) - design.shape[1]))
    drawn = fields.CONSTANTS["spread"]
    spread = [
        {"region": name, "drawn_sd_pct": 100 * drawn[name], "reached_sd_pct": 100 * value}
        for name, value in zip(space.REGIONS, sd)
    ]
    r = pd.DataFrame(np.corrcoef(left.T), space.REGIONS, space.REGIONS)
    kin = [pair for family in FAMILIES for pair in combinations(family, 2)]
    fluid = [("ventricles", name) for name in space.REGIONS if name != "ventricles"]
    every = list(combinations([name for name in space.REGIONS if name != "ventricles"], 2))
    pairs = {"of one family": kin, "of two families": sorted(set(every) - set(kin)),
             "ventricles and tissue": fluid}  # fmt: skip
    kinship = [
        {"regions": name, "pairs": len(those), "mean_r": np.mean([r.loc[a, b] for a, b in those])}
        for name, those in pairs.items()
    ]
    return {"spread": spread, "kinship": kinship}


def repeat_rows(truth: pd.DataFrame, repeats: pd.DataFrame) -> list[dict]:
    """Return the mean true change (% a year) between two visits, by region and stage at the first.

    Groups of fewer than five people are left out.
    """
    if repeats.empty:
        return []
    known, columns = truth.set_index("participant_id"), [f"{name}_after" for name in space.REGIONS]
    first, again = (known.loc[repeats[name]] for name in ("origin", "participant_id"))
    ratio = np.log(again[columns].to_numpy() / first[columns].to_numpy())
    change = pd.DataFrame(100 * np.expm1(ratio / REPEAT_YEARS), columns=list(space.REGIONS))
    stages = change.groupby(first["stage"].replace("n/a", "euploid").to_numpy())
    table = stages.mean()[stages.size() >= 5].T.add_suffix("_pct_a_year")
    return table.rename_axis("region").reset_index().to_dict("records")
