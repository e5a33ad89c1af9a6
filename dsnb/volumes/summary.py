"""The numbers of the 02 page: who was prepared, how good, and what a native scan's way costs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import bids, config, record, space
from dsnb.space import Grid
from dsnb.volumes.product import prepared_path
from dsnb.volumes.quality import QC

FEWEST = 5  # people in a group of which numbers are shown, where people may not be


def summarise(root: Path, study: config.Study) -> dict:
    """Return the 02 page's numbers: how many were prepared or excluded, and QC by group.

    Group-level only: who is flagged or excluded stands in the product's own tables. Where people
    may not be shown, small groups are left out, and percentiles 5 and 95 stand for the extremes.
    """
    record.require(root, "prepared")
    folder = root / "prepared"
    table = bids.typed(bids.read_table(folder / "participants.tsv"))
    excluded = bids.read_table(folder / "exclusions.tsv")
    timing = json.loads((folder / "timing.json").read_text())
    shown = record.read_mark(root)["people_may_be_shown"]
    size = table.groupby(["group", "kind"])["kind"].transform("size")
    seen = table if shown else table[size >= FEWEST]
    levels = [0.0, 0.5, 1.0] if shown else [0.05, 0.5, 0.95]
    spread = seen.groupby(["group", "kind"])[list(QC)].quantile(levels)
    spread = spread.rename_axis(["group", "kind", "quantile"]).reset_index().astype(object)
    flagged = seen["flag"].ne("ok").groupby([seen["group"], seen["kind"]])
    native, known = table[table["mask_ml"].notna()], compare_native(root, study.grid)
    headline = {
        "prepared": len(table),
        "excluded": len(excluded),
        "seconds_per_volume": timing["seconds_per_volume"],
        "mask_dice_min": native["mask_dice"].min() if len(native) else None,
        "native_error": np.sqrt((known["log_det"] ** 2).mean()) if len(known) else None,
        "flagged": int(table["flag"].ne("ok").sum()),
    }
    why = {
        "mask_dice_min": "no native scan: all lay in MNI space already",
        "native_error": "no native scan of known position: only the phantom has some",
        "seconds_per_volume": "an earlier run made them all",
    }
    tables = {
        "qc": spread.where(spread.notna(), None).to_dict("records"),
        "flags": flagged.agg(["sum", "size"]).reset_index().to_dict("records"),
        "exclusions": excluded["code"].value_counts().to_dict(),
        "native": known.to_dict("records"),
        "native_by_group": known.groupby("group").mean().reset_index().to_dict("records"),
        "reasons": {name: text for name, text in why.items() if headline[name] is None},
    }
    if len(seen) < len(table):
        few = len(table[size < FEWEST].groupby(["group", "kind"]))
        tables["reasons"]["qc"] = f"{few} groups of fewer than {FEWEST} people are left out"
    return {"headline": headline, "tables": tables, "timing": timing}


def compare_native(root: Path, grid: Grid) -> pd.DataFrame:
    """Return what a native scan's way costs, a row a phantom person whose position is known.

    `group`; `log_det`: ln of estimated over true growth to the template, so a group's mean is
    what registration takes of its head size; `moved_mm`: RMS displacement inside the template
    brain between the two matrices; `correlation` and `psnr_db` (peak 1) inside the brain with
    the same person's volume that came in MNI space, `white_psnr_db` in sure white matter.
    """
    folder, template = root / "prepared", space.load_template(grid)
    table = bids.read_table(folder / "participants.tsv")
    rows = []
    for row in table[table["kind"] == "native"].to_dict("records"):
        path = prepared_path(folder, row["participant_id"], grid)
        about = json.loads(bids.sidecar_of(path).read_text())
        away = np.array(about["NativeToMNI"]) @ np.linalg.inv(about["TrueNativeToMNI"])
        mm = grid.coordinates_mm()[:, template.brain]
        moved = away[:3, :3] @ mm + away[:3, 3:] - mm
        ours, theirs = (
            bids.load_volume(prepared_path(folder, name, grid))[0]
            for name in (row["participant_id"], row["origin"])
        )
        squares = (ours - theirs) ** 2
        rows.append({
            "group": row["group"],
            "log_det": np.log(np.linalg.det(away)),
            "moved_mm": np.sqrt((moved**2).sum(0).mean()),
            "correlation": np.corrcoef(ours[template.brain], theirs[template.brain])[0, 1],
            "psnr_db": -10 * np.log10(squares[template.brain].mean()),
            "white_psnr_db": -10 * np.log10(squares[template.wm > 0.9].mean()),
        })  # fmt: skip
    columns = ("group", "log_det", "moved_mm", "correlation", "psnr_db", "white_psnr_db")
    return pd.DataFrame(rows, columns=columns)
