"""One split of a cohort for the ablations: who trains, who is judged, and by which ruler."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch.utils.flop_counter import FlopCounterMode

from dsnb import checkpoints, dataset, record, rivals, training, vae
from dsnb.config import Study, Vae, replace
from dsnb.distributed import Noise

FOLDS = 5  # by person, on real scans
VALIDATION = 4  # people of a real fold who choose the checkpoint
PAIRS = 12  # with and without the condition, on the phantom
JUDGED = 20  # people behind PSNR and SSIM


class Trial:
    """One split of a cohort: who trains, who is judged, the template, and what the ruler says."""

    def __init__(self, root: Path, study: Study, fold: int):
        self.root, self.study, self.fold = root, study, fold
        self.table, self.volumes = dataset.load_table(root), dataset.load_volumes(root)
        self.data = record.read_mark(root)["data"]
        self.fit, self.validation, self.test = self._people()
        self.pairs = self._pairs()
        self.cohort = dataset.content(root)
        self.folder = root / "runs" / "ablations" / f"{self.cohort}-{fold}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.template = self._kept(
            "template", lambda: rivals.fit_template(self.volumes[self.fit], study)
        )
        both = self.volumes[self.pairs.ravel()].astype(np.float32)
        self.before = self._kept("before", lambda: vae.region_logs(both, self.template, study))
        self.brain = np.mean(self.volumes[self.fit], axis=0, dtype=np.float32) > vae.TISSUE

    def _people(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows of fit, validation and test euploids of this fold."""
        if self.data == "phantom":
            splits = ("fit", "validation", "test")
            return tuple(dataset.select(self.table, "euploid", split) for split in splits)
        everybody = dataset.select(self.table, "euploid")
        families = self.table["family"].iloc[everybody]
        folds = GroupKFold(FOLDS, shuffle=True, random_state=0).split(everybody, groups=families)
        known, unseen = list(folds)[self.fold]
        return everybody[known[VALIDATION:]], everybody[known[:VALIDATION]], everybody[unseen]

    def _pairs(self) -> np.ndarray:
        """Return rows (P, 2) of unseen people with and without the condition, and otherwise one."""
        places = {name: row for row, name in enumerate(self.table["participant_id"])}
        origins, kinds = self.table["origin"].to_numpy(), self.table["kind"].to_numpy()
        if self.data == "phantom":  # a twin's origin is the person with DS
            unseen = self.table.index[dataset.select(self.table, "DS", "test")]
            names = set(self.table["participant_id"].iloc[unseen])
            twins = [i for i in np.flatnonzero(kinds == "twin") if origins[i] in names][:PAIRS]
            return np.array([(places[origins[i]], i) for i in twins])
        unseen = set(self.table["participant_id"].iloc[self.test])
        planted = [i for i in np.flatnonzero(kinds == "planted") if origins[i] in unseen]
        return np.array([(i, places[origins[i]]) for i in planted])

    def _kept(self, name: str, make: Callable) -> np.ndarray:
        """Return an array made once for all variants of this split."""
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            aside = path.with_name(f".{name}.npy")
            np.save(aside, make())
            aside.replace(path)
        return np.load(path, allow_pickle=False)

    def features(self, settings: Vae) -> vae.FeatureNet:
        """Return the feature network of this split's fit people, trained at its first use."""
        plan = replace(vae.feature_plan(settings), seed=1)
        folder = self.folder / f"features-{record.digest(record.plain(asdict(plan)))}"
        folder.mkdir(exist_ok=True)
        task = vae.FeatureTask(self.root, torch.device("cpu"), self.fit)
        training.train(folder, task, plan, {"settings": asdict(plan)})  # at once where it is done
        return vae.load_features(folder)

    def train(self, settings: Vae) -> dict:
        """Train a VAE of these settings on this split's people; its measures and its cost."""
        net = self.features(settings) if settings.perceptual else None
        people = self.fit, self.validation
        task = vae.VaeTask(self.root, settings, torch.device("cpu"), people, self.template, net)
        folder, began = self.folder / "run", time.process_time()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ended = training.train(folder, task, settings.training, {"settings": asdict(settings)})
        spent = {"cpu_seconds": time.process_time() - began, "skipped": ended["skipped"]}
        return self.measure(vae.restore(checkpoints.require(folder))) | spent | cost(task)

    def measure(self, model: vae.NormativeVae) -> dict:
        """Return the measures of a trained VAE on unseen people."""
        test = self.volumes[self.test[:JUDGED]].astype(np.float32)
        both = self.volumes[self.pairs.ravel()].astype(np.float32)
        drawn, channels = vae.reconstruct(model, test), vae.channel_table(model, test)
        redrawn = rivals.without_halo(vae.reconstruct(model, both))
        after = vae.region_logs(redrawn, self.template, self.study)
        without = np.tile([False, True], len(self.pairs))
        regions = vae.region_errors(self.before[without], after[without])
        return {
            "psnr_db": vae.psnr_db(drawn, test, self.brain).mean(),
            "ssim": vae.ssim(drawn, test, self.brain).mean(),
            "people": len(test), "pairs": len(self.pairs),
            "region_error_pct": np.mean([row["error_pct"] for row in regions.values()]),
            "region_bias_pct": np.mean([abs(row["bias_pct"]) for row in regions.values()]),
            "effect_kept": vae.effect_kept(self.before, after, without),
            "spectrum": vae.residual_bands(drawn, test, self.brain),
            "kl_nats": [row["kl_nats"] for row in channels],
            "active_share": np.mean([row["active_share"] for row in channels]),
        }  # fmt: skip


def cost(task: vae.VaeTask) -> dict:
    """Return parameters and GFLOP of a volume, forward and backward, as torch counts them."""
    rows, model = np.array([0]), task.model
    with FlopCounterMode(display=False) as counter:
        terms = task.loss(model, task.load(rows), Noise(0, rows, 0, task.device))
        sum(terms.values()).backward()
    return {
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "gigaflop": counter.get_total_flops() / 1e9,
    }
