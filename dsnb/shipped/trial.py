"""What re-centring on few euploids mends, on the simulated new scanner: error, and what is kept.

Unseen euploids are scanned again and mapped as they are and with generic volume changes, whose
effect on a log-Jacobian the product `planted` knows; a row of the ledger.
"""

from pathlib import Path

import numpy as np

from dsnb import anomaly, dataset, record, rivals
from dsnb.anomaly import metrics
from dsnb.config import Study
from dsnb.shipped.norm import load
from dsnb.shipped.people import CODE, Euploids, measure, recentred
from dsnb.sites import rescan

LEDGER = "05_recentred"
KNOWN = (0, 5, 10, 20, 30)  # calibration euploids scanned there
JUDGED = 40  # test euploids


def try_recentring(root: Path, study: Study, name: str = "phantom-small") -> None:
    """Fill the ledger: flagged euploids, found changes and lift, at home and by number known."""
    norm, about = load(name), dataset.identify(root)
    task = {**about, "norm": norm.about["digest"], "known": KNOWN, "sites": vars(study.sites)}
    key = record.row_key(task, CODE)
    if record.find_row(LEDGER, key):
        return
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    known, judged = (dataset.select(table, "euploid", s) for s in ("calibration", "test"))
    known, judged = known[: max(KNOWN)], judged[:JUDGED]
    rows = np.r_[known, judged]
    moved = np.stack([rescan(volumes[row].astype(np.float32), table["participant_id"][row], study)
                      for row in rows]).astype(np.float32)  # fmt: skip
    reference, source = norm.reference, norm.reference.norm.source
    responses, change = anomaly.undo.load_responses(root), np.load(root / "planted" / "change.npy")
    truth = np.abs(change[: len(judged)].astype(np.float32)) > study.maps.truth_change
    brain, found = (slice(None), source.brain), []
    home = rivals.load_deformation(root)[1][judged].astype(np.float32)
    there = rivals.register_volumes(moved, source.template, source.study)
    source.take(table.iloc[rows], moved, there)
    others = measure(reference.norm, source.people(np.arange(len(known))))
    for scanner, maps, counts in (("home", home, (0,)), ("new", there[len(known) :], KNOWN)):
        planted = maps.copy()
        planted[brain] += responses[: len(judged)]
        for count in counts:
            some, judge = Euploids(*(part[:count] for part in others)), []
            for maps_of in (maps, planted):
                source.take(table.iloc[judged], moved[len(known) :], maps_of)
                judge.append([])
                for row in range(len(judged)):
                    person = source.people(np.array([row]))
                    own = measure(reference.norm, person)
                    lens = recentred(reference, some, own) if count else reference
                    z = lens.norm.normative.z(own.maps, own.covariates)
                    judge[-1].append((z[0], lens.calibration.q(z)[0]))
            (_, q), (z, q_planted) = (map(np.stack, zip(*part)) for part in judge)
            rate, lift = reference.calibration.rate, metrics.average_precision(np.abs(z), truth)[2]
            found.append({"scanner": scanner, "known": count, **metrics.flagged(q, rate),
                          "guarantee": lens.calibration.guarantee, "lift": lift.mean(),
                          "found": metrics.flagged(q_planted, rate)["share"]})  # fmt: skip
            record.say(f"{scanner}, {count} known: {found[-1]}")
    record.add_row(LEDGER, key, {"recentred": found, "norm": name})
