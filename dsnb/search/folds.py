"""One split of a cohort for the ablations: who trains, who is judged, and by which ruler."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch.utils.flop_counter import FlopCounterMode

from dsnb import checkpoints, dataset, record, rivals, space, training, vae
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
        self.cohort = dataset.identify(root)
        self.data = self.cohort["data"]
        self.fit, self.validation, self.test = self._people()
        self.pairs = self._pairs()
        ruler = record.digest([self.cohort, fold, record.code_digest("rivals", "space")])
        self.folder = root / "runs" / "ablations" / ruler
        self.folder.mkdir(parents=True, exist_ok=True)
        self.template = self._kept(
            "template", lambda: rivals.fit_template(self.volumes[self.fit], study)
        )
        if len(self.pairs):
            self.before = self._kept(
                "before", lambda: vae.region_logs(self._both(), self.template, study)
            )
        self.brain = space.load_template(study.grid).brain

    def _people(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows of fit, validation and test euploids of this fold."""
        if self.data == "phantom":
            splits = ("fit", "validation", "test")
            return tuple(dataset.select(self.table, "euploid", split) for split in splits)
        everybody = dataset.select(self.table, "euploid")
        families = self.table["family"].iloc[everybody]
        folds = GroupKFold(FOLDS, shuffle=True, random_state=0).split(everybody, groups=families)
        known, unseen = list(folds)[self.fold]
        known = np.random.default_rng(self.fold).permutation(everybody[known])
        return np.sort(known[VALIDATION:]), np.sort(known[:VALIDATION]), everybody[unseen]

    def _pairs(self) -> np.ndarray:
        """Return rows (P, 2) of unseen people with and without the condition, and otherwise one."""
        places = {name: row for row, name in enumerate(self.table["participant_id"])}
        origins, kinds = self.table["origin"].to_numpy(), self.table["kind"].to_numpy()
        if self.data == "phantom":  # a twin's origin is the person with DS
            unseen = self.table.index[dataset.select(self.table, "DS", "test")]
            names = set(self.table["participant_id"].iloc[unseen])
            twins = [i for i in np.flatnonzero(kinds == "twin") if origins[i] in names][:PAIRS]
            return np.array([(places[origins[i]], i) for i in twins], int).reshape(-1, 2)
        unseen = set(self.table["participant_id"].iloc[self.test])
        planted = [i for i in np.flatnonzero(kinds == "planted") if origins[i] in unseen]
        return np.array([(i, places[origins[i]]) for i in planted], int).reshape(-1, 2)

    def _both(self) -> np.ndarray:
        """Return the volumes (2P, X, Y, Z) of the pairs."""
        return self.volumes[self.pairs.ravel()].astype(np.float32)

    def _kept(self, name: str, make: Callable) -> np.ndarray:
        """Return an array made once for all variants of this split."""
        path = self.folder / f"{name}.npy"
        if not path.is_file():
            aside = path.with_name(f".{name}.npy")
            np.save(aside, make())
            aside.replace(path)
        return np.load(path, allow_pickle=False)

    def features(self, settings: Vae) -> tuple[vae.FeatureNet, float]:
        """Return the feature network of this split's fit people, and the CPU-seconds it took."""
        plan, code = replace(vae.feature_plan(settings), seed=1), record.code_digest(*vae.FEATURES)
        folder = self.folder / f"features-{record.digest([record.plain(asdict(plan)), code])}"
        folder.mkdir(exist_ok=True)
        task = vae.FeatureTask(self.root, torch.device("cpu"), self.fit)
        cost, began = folder / "cpu_seconds.json", time.process_time()
        training.train(folder, task, plan, {"settings": asdict(plan)})  # at once where it is done
        if not cost.is_file():
            record.write_json(cost, {"cpu_seconds": time.process_time() - began})
        return vae.load_features(folder), json.loads(cost.read_text())["cpu_seconds"]

    def train(self, settings: Vae) -> dict:
        """Train a VAE of these settings on this split's people; its measures and its cost."""
        net, before = self.features(settings) if settings.perceptual else (None, 0.0)
        began, people = time.process_time(), (self.fit, self.validation)
        task = vae.VaeTask(self.root, settings, torch.device("cpu"), people, self.template, net)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            run, identity = Path(name), {"settings": asdict(settings)}
            ended = training.train(run, task, settings.training, identity)
            spent = before + time.process_time() - began
            spent = {"cpu_seconds": spent, "skipped": ended["skipped"]}
            model = vae.restore(checkpoints.require(run))
            return self.measure(model) | spent | count_cost(task)

    def measure(self, model: vae.NormativeVae) -> dict:
        """Return the measures of a trained VAE on unseen people."""
        channels = vae.channel_table(model, self.volumes[self.test[:JUDGED]].astype(np.float32))
        return self._measure(lambda volumes: vae.reconstruct(model, volumes)) | {
            "kl_nats": [row["kl_nats"] for row in channels],
            "active_share": np.mean([row["active_share"] for row in channels]),
        }

    def measure_linear(self, name: str) -> dict:
        """Return the measures of `pca` or `mean` on unseen people, and what they cost."""
        began, fit = time.process_time(), self.volumes[self.fit]
        found = self._measure(lambda volumes: vae.linear_rivals(fit, volumes, self.brain)[name])
        return found | {"cpu_seconds": time.process_time() - began}

    def _measure(self, redraw: Callable[[np.ndarray], np.ndarray]) -> dict:
        """Return how unseen people are redrawn, and what becomes of regions and the condition.

        The condition's effect is that on region volumes, of people with it against without.
        """
        test = self.volumes[self.test[:JUDGED]].astype(np.float32)
        drawn = redraw(test)
        found = {
            "psnr_db": vae.psnr_db(drawn, test, self.brain).mean(),
            "ssim": vae.ssim(drawn, test, self.brain).mean(),
            "people": len(test), "pairs": len(self.pairs),
            "spectrum": vae.residual_bands(drawn, test, self.brain),
        }  # fmt: skip
        if not len(self.pairs):
            return found
        redrawn = rivals.without_halo(redraw(self._both()))
        after = vae.region_logs(redrawn, self.template, self.study)
        without = np.tile([False, True], len(self.pairs))
        regions = vae.region_errors(self.before[without], after[without])
        return found | {
            "region_error_pct": np.mean([row["error_pct"] for row in regions.values()]),
            "region_bias_pct": np.mean([abs(row["bias_pct"]) for row in regions.values()]),
            "effect_kept": vae.effect_kept(self.before, after, without),
        }


def count_cost(task: vae.VaeTask) -> dict:
    """Return parameters and GFLOP of a volume, forward and backward, as torch counts them."""
    rows, model = np.array([0]), task.model
    with FlopCounterMode(display=False) as counter:
        terms = task.loss(model, task.load(rows), Noise(0, rows, 0, task.device))
        sum(terms.values()).backward()
    return {
        "parameters": sum(w.numel() for n, w in model.named_parameters() if "critic" not in n),
        "gigaflop": counter.get_total_flops() / 1e9,
    }
