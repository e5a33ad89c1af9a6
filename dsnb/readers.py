"""A blinded reader pack: do people who read brains see in the maps who has DS, and agree?

No reader has used it yet. The pack shows maps on the template, so that no outline of a head gives
a person away; the key lies apart.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from dsnb import anomaly, bids, dataset, figures, record
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.figures.person import LIMIT, SHOWN

CASES = 12  # of each group at most
FEWEST = 5
SHEET, KEY = "rating_sheet.tsv", "key.tsv"
READ_ME = f"""# Reader pack

No reader has used it yet. Each picture shows one person's map over a template: where the brain
departs from what a healthy person of the same age and sex would have, in z. Colours are alike in
every picture: from -{LIMIT:g} (blue, smaller or darker) to {LIMIT:g} (red), with the colour of the
end beyond, and none within +-{SHOWN:g}. Fill one copy of `rating_sheet.tsv` a reader, alone,
without knowing who is who: `abnormal` 0 or 1, `confidence` 1 to 5, the most abnormal `region`, and
`artefact` 0 or 1. Then: `dsnb map agreement SHEET SHEET ...`.
Research use, not a diagnosis.
"""


def make_pack(root: Path, study: Study) -> Path:
    """Write `readers/`: a picture a case in random order, sheet and README; the key in `key/`.

    Test people with DS and test euploids in equal number. Refuses (E-FEW) fewer than 5 a group.
    """
    record.require(root, "maps")
    table, norm = dataset.load_table(root), anomaly.BY_NAME[study.maps.norm]
    groups = [dataset.select(table, group, "test") for group in ("euploid", "DS")]
    count = min(CASES, *map(len, groups))
    if count < FEWEST:
        fix = "give a cohort with more test people"
        raise BadInput("E-FEW", "maps", "test people a group", count, f"{FEWEST} or more", fix)
    rng = np.random.default_rng(study.maps.seed)
    rows = rng.permutation(np.concatenate([rng.choice(rows, count, False) for rows in groups]))
    template = dataset.mean_volume(
        dataset.load_volumes(root), dataset.select(table, "euploid", "fit")
    )
    folder = root / "readers"
    (folder / "key").mkdir(parents=True, exist_ok=True)
    cases = [f"case-{number:02d}" for number in range(1, len(rows) + 1)]
    for case, row in zip(cases, rows):
        name = table["participant_id"].iloc[row]
        values = anomaly.read_map(root, name, "z", study.grid)
        unit = f"{case}: z, {'local volume' if norm.of_volume else 'intensity'}"
        # One scale for all: a bar that follows the person's range may tell who has DS.
        how = {"unit": unit, "threshold": SHOWN, "limit": LIMIT}
        picture = figures.plot_overlay(template, values, study.grid.affine, **how)
        figures.save_figure(picture, folder / f"{case}.png")
    empty = dict.fromkeys(("reader", "abnormal", "confidence", "region", "artefact"), bids.MISSING)
    bids.write_table(folder / SHEET, pd.DataFrame({"case": cases}).assign(**empty))
    group = table["group"].to_numpy()[rows]
    bids.write_table(folder / "key" / KEY, pd.DataFrame({"case": cases, "group": group}))
    record.write_text(folder / "README.md", READ_ME)
    return folder


def agree(sheets: list[Path], key: Path) -> list[str]:
    """Say each reader's sensitivity and specificity (exact 95 %), and kappa of each pair (Cohen).

    Refuses (E-SHEET) a sheet that lacks a case or holds another word than 0 and 1 in `abnormal`.
    """
    truth = bids.read_table(key).set_index("case")["group"] == "DS"
    ratings, said = {}, []
    for sheet in sheets:
        found = bids.read_table(sheet).set_index("case")["abnormal"].reindex(truth.index)
        if not found.isin(["0", "1"]).all():
            case = found.index[~found.isin(["0", "1"])][0]
            seen, fix = str(found[case]), "fill the sheet in, a row a case"
            raise BadInput("E-SHEET", sheet.name, f"abnormal of {case}", seen, "0 or 1", fix)
        ratings[sheet.name] = found == "1"
    for name, rated in ratings.items():
        parts = []
        for word, cases, right in (("sensitivity", truth, True), ("specificity", ~truth, False)):
            hits, of = int((rated[cases] == right).sum()), int(cases.sum())
            low, high = stats.binomtest(hits, of).proportion_ci(0.95, "exact")
            parts.append(f"{word} {hits}/{of} ({low:.2f} to {high:.2f})")
        said.append(f"{name}: " + ", ".join(parts))
    for one, other in combinations(ratings, 2):
        kappa = cohen_kappa_score(ratings[one], ratings[other])
        said.append(f"{one} and {other}: kappa {kappa:.2f}")
    return said
