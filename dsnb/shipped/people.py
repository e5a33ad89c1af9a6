"""A cohort mapped by a shipped norm, re-centred on a few of its own euploids where they are told.

Re-centred error is full conformal: a person and the k known euploids are each compared with the
other k, so a new euploid's map is the wildest of the k + 1 with probability 1 / (k + 1), whatever
the distribution. Nothing below that can be promised.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dsnb import bids, dataset, record, report, rivals
from dsnb.anomaly import maps, regions
from dsnb.anomaly.maps import Reference
from dsnb.anomaly.people import People
from dsnb.anomaly.tuning import FittedNorm
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.norms import Calibration, Normative
from dsnb.shipped.norm import Shipped, check_grid, load
from dsnb.sites import recentre

CODE = ("space", "rivals", "norms", "anomaly", "sites", "shipped")
FEWEST = 5  # euploids of a scanner
STRANGE = 0.05  # p of as many wide euploids, below which the scanner is called foreign
TEXTS = {  # outside of the brain, step on disk, text
    "z": (0, 1e-3, "departure / predictive SD, positive = larger than the norm"),
    "p": (1, None, "two-sided, Student t, calibrated"),
    "q": (1, None, "Benjamini-Hochberg after a conformal factor; its promise is in people.tsv"),
}
BOUND = ("|z| that at most 5 % of new euploids of the scanner exceed in this region (full "
         "conformal, both sexes); n/a where fewer than 19 of them are known")  # fmt: skip
COLUMNS = {
    "participant_id": "whose", "group": "euploid or DS", "site": "as told", "age": "years",
    "known": "whether the norm was re-centred on this person; their own map left them out",
    "voxels": "brain voxels with q below the rate",
    "outside_share": "share of the brain beyond its 95 % range",
    "regions_outside": "regions outside of their bound; n/a where there is none",
    "guarantee": "at most this share of new euploids of the scanner has any voxel below the rate",
    "notes": "what speaks against reading this map",
}  # fmt: skip


def recentre_for(
    normative: Normative, known: np.ndarray, covariates: np.ndarray, own: np.ndarray,
    own_covariates: np.ndarray,
) -> tuple[Normative, np.ndarray]:  # fmt: skip
    """Return a norm moved to a scanner for one person (F,), and z (k, F) of its known euploids.

    Each known one (k, F) is compared with the other k - 1 and the person, as the person is with
    them: all k + 1 are exchangeable if the person is a euploid. One scale serves all features.
    """
    values, about = np.vstack([known, own]), np.vstack([covariates, own_covariates])
    rest, thin = normative.residual(values, about), replace(
        normative, coefficients=normative.coefficients[:, :1], sd=np.ones(1, np.float32)
    )  # fmt: skip
    z, total = np.empty_like(known), rest.sum(0)
    for row in range(len(known)):
        others = np.arange(len(values)) != row
        leverage = recentre(thin, values[others, :1], about[others])  # that of every feature
        centre = (total - rest[row]) / (len(values) - 1)
        z[row] = (rest[row] - centre) / (normative.sd * leverage.spread(about[[row]]))[0]
    moved = recentre(normative, known, covariates)
    scale = np.float32(np.quantile(np.abs(z), 0.95) / stats.t.isf(0.025, moved.freedom))
    return replace(moved, sd=moved.sd * scale), z / scale


class Euploids(NamedTuple):
    """Departures (k, V), region means (k, R) and covariates (k, K) of people."""

    maps: np.ndarray
    means: np.ndarray
    covariates: np.ndarray


def measure(norm: FittedNorm, people: People) -> Euploids:
    """Return what a norm sees of people."""
    return Euploids(norm.departures(people), regions.region_means(norm, people), people.covariates)


def recentred(reference: Reference, known: Euploids, own: Euploids) -> Reference:
    """Return a reference whose norm, error and region bounds are one person's at a scanner."""
    norm, models = reference.norm, (reference.norm.normative, reference.ruler.normative)
    (normative, z), (of_regions, inside) = (
        recentre_for(model, there, known.covariates, here, own.covariates)
        for model, there, here in zip(models, known, own)
    )
    calibration = Calibration.fit(z, normative.freedom, reference.calibration.rate)
    bound = regions.bound(np.abs(inside))  # of both sexes: few are known
    norm = replace(norm, normative=normative)
    ruler = regions.Ruler(norm, of_regions, np.sort(inside, 0), dict.fromkeys("FM", bound))
    widest = float((calibration.p(z) < 0.05).mean(1).max())
    return Reference(norm, calibration, ruler, reference.ages, widest, len(z))


def read_known(path: Path, table: pd.DataFrame) -> np.ndarray:
    """Return the row numbers of the euploids that a TSV names in `participant_id`.

    Refuses a table without that column (E-COLUMN), unknown ids (E-UNKNOWN), people with DS or drawn
    ones among them (E-GROUP), and fewer than 5 (E-FEW).
    """
    named = bids.read_table(path)
    if "participant_id" not in named:
        said = ([*named], "participant_id", "name it so")
        raise BadInput("E-COLUMN", path.name, "columns", *said)
    rows = np.array(report.find(table, named["participant_id"]), int)
    chosen = table.iloc[rows]
    fair = (chosen["group"] == "euploid") & chosen["kind"].isin(dataset.OWN_PEOPLE)
    if not fair.all():
        fix = "name euploids alone, each with a scan of its own"
        seen = chosen.loc[~fair, "participant_id"].tolist()
        raise BadInput("E-GROUP", path.name, "people who are not euploid", seen[:5], "none", fix)
    if len(rows) < FEWEST:
        fix = "scan more euploids there, or map without --recentre and read the warnings"
        raise BadInput("E-FEW", path.name, "euploids", len(rows), f"{FEWEST} or more", fix)
    return rows


def _register(root: Path, norm: Shipped) -> np.ndarray:
    """Register everybody but twins to the norm's template; return a map of log-Jacobians (N, ...).

    They are the product `deformation-NAME`, which another list of euploids reads again.
    """
    source, name = norm.reference.norm.source, f"deformation-{norm.name}"
    settings = {"norm": norm.about["digest"]}
    product = record.begin(root, name, "map", settings, ("prepared",), rivals.CODE)
    if not product.done:
        table, volumes = dataset.load_table(root), dataset.load_volumes(root)
        rows = np.flatnonzero(table["kind"] != "twin")
        # By blocks, so that a killed run goes on.
        rivals._register_rows(product.folder, volumes, rows, source.template, source.study)
        product.finish()
    return np.load(product.folder / "log_jacobian.npy", mmap_mode="r", allow_pickle=False)


def apply(root: Path, study: Study, name: str, recentre_on: Path | None = None) -> Path:
    """Map a prepared cohort by a shipped norm to `maps-NAME` of its data root; return that folder.

    It holds z, p and q of everybody, regions.tsv, people.tsv and summary.json. Refuses as `load`,
    `check_grid` and `read_known` do.
    """
    norm = load(name)
    check_grid(norm.about, study.grid)
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    known = read_known(recentre_on, table) if recentre_on else np.array([], int)
    source = norm.reference.norm.source
    source.study = replace(source.study, maps=replace(source.study.maps,
                                                      processes=study.maps.processes))  # fmt: skip
    source.take(table, volumes, _register(root, norm))
    settings = {"norm": norm.about["digest"], "known": table["participant_id"].iloc[known].tolist()}
    parents, folder = ("prepared", f"deformation-{norm.name}"), f"maps-{norm.name}"
    product = record.begin(root, folder, "map", settings, parents, CODE)
    if not product.done:
        bids.describe(product.folder, f"dsnb maps by the norm {norm.name}", "prepared")
        _write(product.folder, norm, known)
        product.finish()
    for warning in json.loads((product.folder / "summary.json").read_text())["warnings"]:
        record.say(f"map: {warning}")
    return product.folder


def _write(folder: Path, shipped: Shipped, known: np.ndarray) -> None:
    """Write maps, tables and the summary of everybody but twins."""
    reference, measured, rows = shipped.reference, [], []
    norm, source = reference.norm, reference.norm.source
    everybody = np.flatnonzero(source.table["kind"] != "twin")
    there = measure(norm, source.people(known)) if len(known) else None
    for number, row in enumerate(everybody, start=1):
        about, person = source.table.iloc[row], source.people(np.array([row]))
        lens = reference
        if there:
            others = Euploids(*(part[known != row] for part in there))
            lens = recentred(reference, others, measure(norm, person))
        z = lens.norm.z(person)
        found = {"z": z, "p": lens.calibration.p(z), "q": lens.calibration.q(z)}
        for desc, (outside, step, text) in TEXTS.items():
            name = about["participant_id"]
            maps.write_map(folder, name, desc, found[desc][0], source, text, outside, step)
        measured.append(lens.ruler.measure(person, source.table.iloc[[row]]))
        bounded, p, q = measured[-1].dropna(subset="bound"), found["p"][0], found["q"][0]
        rows.append({
            **about[["participant_id", "group", "site", "age"]], "known": row in known,
            "voxels": int((q < lens.calibration.rate).sum()),
            "outside_share": float((p < 0.05).mean()), "guarantee": lens.calibration.guarantee,
            "regions_outside": int(bounded["outside"].sum()) if len(bounded) else None,
            "notes": " ".join(report.tell(lens, about, [], measured[-1], p, q)[1:]) or "n/a",
        })  # fmt: skip
        record.progress("maps", number, len(everybody))
    people = pd.DataFrame(rows, columns=[*COLUMNS], dtype=object)
    bids.write_table(folder / "people.tsv", people)
    bids.write_dictionary(folder / "people.json", COLUMNS)
    regions.write(folder, measured, norm.candidate.of_volume)
    if there:
        path = folder / "regions.json"
        bound = json.loads(path.read_text()) | {"bound": {"Description": BOUND}}
        record.write_json(path, bound)
    own = source.table["kind"].iloc[everybody].isin(dataset.OWN_PEOPLE).to_numpy()
    told = {key: shipped.about[key] for key in ("digest", "data", "terms")}
    record.write_json(folder / "summary.json", {
        "norm": shipped.name, **told, "known": len(known), "rate": reference.calibration.rate,
        **summarise(people[own], reference, len(known)),
    })  # fmt: skip


def summarise(people: pd.DataFrame, reference: Reference, known: int) -> dict:
    """Return how many of each group are flagged, what is promised, and warnings in sentences."""
    groups = {
        name: {"people": len(some), "flagged": int((some["voxels"] > 0).sum())}
        for name, some in people.groupby("group")
    }
    (low, high), warnings = reference.ages, []
    if old := int((~people["age"].astype(float).between(low, high)).sum()):
        warnings.append(f"{old} of {len(people)} people are outside of the norm's ages, {low:.0f} "
                        f"to {high:.0f} years: it is extrapolated.")  # fmt: skip
    euploids = people[people["group"] == "euploid"]
    wide = int((euploids["outside_share"] > reference.widest).sum())
    # Of exchangeable people, those beyond the widest of M known ones are beta-binomial.
    chance = stats.betabinom.sf(wide - 1, len(euploids), 1, reference.people)
    if not known and wide and chance < STRANGE:
        warnings.append(
            f"{wide} of {len(euploids)} euploids have more of the brain beyond its 95 % range than "
            f"any of {reference.people} calibration euploids: the scanner is foreign to the norm "
            f"and q does not hold; name {FEWEST} to 30 of its euploids in --recentre."
        )
    told = euploids.loc[people["known"].astype(bool), "site"]
    if known and (others := sorted({*people["site"]} - {*told})):
        warnings.append(f"no euploid of {', '.join(others)} is known: for people there the norm is "
                        "centred on another scanner.")  # fmt: skip
    promised = float(people["guarantee"].astype(float).max())
    return {"guarantee": promised, "groups": groups, "warnings": warnings}
