"""Results files: the numbers that a page quotes, and which study a data root holds."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import psutil

from dsnb.checks import BadInput
from dsnb.config import load_study
from dsnb.record.classes import data_class, may_show, suppress
from dsnb.record.files import HOME, digest, plain, provenance, seeds, write_json
from dsnb.record.products import chain, data_digest, require

# The headline keys that each results file must carry (null needs a reason in `tables`).
HEADLINE = {
    "01_cohort": "subjects euploid ds folded_voxels target_error_points phantom_version",
    "02_volumes": "prepared excluded seconds_per_volume mask_dice_min native_error",
    "03_vae": "psnr_db psnr_db_floor ssim psnr_db_pca psnr_db_mean region_error_pct "
    "gain_db_over_monai gain_db_over_monai_shrunk time_ratio_to_20db active_channels",
    "04_latents": "latent_size pca_variance_2 ds_shift_sd leak_floor_auc",
    "05_anomaly": "lift lift_best_rival best_rival lift_ratio_ci auprc auprc_best_rival "
    "auprc_null prevalence effect_rank_correlation euploids_flagged sham_flagged fdp_at_q05 "
    "power_at_q05 coverage_error_points",
    "06_strata": "bacc_ds_with_size auc_ds auc_ds_volumes auc_ds_confounds auc_ds_oracle "
    "bacc_ds_hard bacc_ds_hard_volumes stage_gain stage_gain_ci permutation_p "
    "strata_false_discovery",
    "07_diffusion": "sampler_steps guidance spectrum_error_db",
    "08_fidelity": "effect_correlation effect_slope regions_equivalent reconstruction_slope kid "
    "kid_floor tstr_bacc trtr_bacc copies_recalled false_alarms overfit_attack_auc attack_auc "
    "attack_auc_upper release",
    "09_search": "trials best_psnr_db default_psnr_db ablations",
    "10_scaling": "ddp_efficiency parity_error resume_identical model_error_pct",
}
STAGES = tuple(HEADLINE)


def find_root(data_root: str) -> Path:
    """Return the data root: the folder named, else $DSNB_DATA, else `data` beside the package."""
    return Path(data_root or os.environ.get("DSNB_DATA") or HOME.parent / "data").expanduser()


def open_root(
    data_root: str, preset: str, data: str | None, people_may_be_shown: bool, kind: str = ""
) -> Path:
    """Return the data root, marked with its preset and data; another study's root is refused.

    `data` is None where a stage takes what earlier stages left; `kind` is the class of the data,
    where more is known than whether people may be shown.
    """
    root = find_root(data_root)
    mark = root / "study.json"
    fix = "give another data root (data_root, or DSNB_DATA)"
    if mark.is_file():
        seen = json.loads(mark.read_text())
        if seen["preset"] != preset or data not in (None, seen["data"]):
            wanted = f"preset {preset}, data {data or seen['data']}"
            raise BadInput("E-ROOT", root.name, "its study", seen, wanted, fix)
    else:
        shown = data is None or people_may_be_shown
        entry = {"preset": preset, "data": data or "phantom", "people_may_be_shown": shown}
        write_json(mark, entry | {"class": kind or data_class(entry)})
    return root


def read_mark(root: Path) -> dict:
    """Return which study a data root holds: preset, data, people_may_be_shown, class."""
    mark = json.loads((root / "study.json").read_text())
    return mark | {"class": data_class(mark)}  # a root of before has none


def write_results(
    root: Path, stage: str, headline: dict, tables: dict, timing: dict, parents: tuple[str, ...]
) -> dict:
    """Write `results/NN_noun.json` under the root; every null needs a reason in its tables.

    Keys follow the results contract (`HEADLINE`); more may be added, none may be missing. What
    tells of few people is hidden where the class of the data forbids it.
    """
    missing = set(HEADLINE[stage].split()) - set(headline)
    silent = [k for k, v in headline.items() if v is None and k not in tables.get("reasons", {})]
    if missing or silent:
        raise ValueError(f"{stage}: headline lacks {sorted(missing)}, no reason for {silent}")
    mark = read_mark(root)
    if not may_show(mark, "few"):
        headline, tables = suppress(plain(headline)), suppress(plain(tables))
    keys = {parent: require(root, parent) for parent in parents}
    results = plain(
        {
            "stage": stage,
            "preset": mark["preset"],
            "data": mark["data"],
            "class": mark["class"],
            "headline": headline,
            "tables": tables,
            "timing": timing,
            "provenance": provenance(stage, mark, keys) | _origin(root, mark["preset"], parents),
        }
    )
    write_json(root / "results" / f"{stage}.json", results)
    return results


def _origin(root: Path, preset: str, parents: tuple[str, ...]) -> dict:
    """Return what a page rests on: settings, seeds, data, all products, and the figures it drew.

    A page's process lives as long as the page, so figures written since it began are the page's.
    """
    study, began = plain(asdict(load_study(preset))), psutil.Process().create_time()
    drawn = sorted(path for path in (root / "figures").glob("*.*") if path.is_file())
    return {
        "study": digest(study),
        "seeds": seeds(study),
        "data_manifest": data_digest(root),
        "chain": chain(root, parents),
        "figures": {p.name: digest(p) for p in drawn if p.stat().st_mtime >= began},
    }


def read_results(root: Path, stage: str) -> dict:
    """Read a stage's results; refuse with the stage to run when they are absent."""
    path = root / "results" / f"{stage}.json"
    if not path.is_file():
        fix = f"run notebooks/{stage}.ipynb first"
        raise BadInput("E-MISSING", path.name, "this results file", "absent", "a file", fix)
    return json.loads(path.read_text())
