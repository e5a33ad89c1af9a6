"""A run folder -> what is wrong with its training, in plain words, and what to try.

Each check reads what the run itself left (log, settings, newest whole checkpoint), never the data.
Thresholds are orders of magnitude with a reason; none was fitted to a run.
"""

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dsnb import checkpoints, training, vae
from dsnb.checks import BadInput
from dsnb.config import Training
from dsnb.vae.networks import LOGVAR_RANGE

BLOCKS = 10  # equal parts of a run whose medians are compared, so that no single batch counts
FEWEST = 2 * BLOCKS  # steps, below which no trend is judged
FIT = ("l1", "mse", "velocity")  # terms that only fall: KL and critic may rise as they should
RARE = 0.01  # share of steps that may fail; more, and the data or the rate is the cause
RISE = 3.0  # single batches of two people differ by a factor of up to two
GRADIENT_RISE = 10.0  # a gradient that learns to see detail grows by two or three
LEVEL = (0.3, 2.0)  # bright tissue of the mean volume; prepared white matter lies near 0.85
UNITS = (0.02, 5.0)  # first L1 in units of `residual_scale`: people differ by about half a unit
COMPONENT_SD = (0.5, 2.0)  # of the flow's components; the noise they are mixed with has 1
CLAMP = 0.5  # log-variance this near an end of its range gets no gradient any more
NATS = 50.0  # KL of a latent element ten SD from the prior
EARLY = 0.25  # share of a run in which units may still wake up
IDLE, FEW = 0.01, 0.1  # share of active units: none to speak of; most carry nothing
STARVED = 0.2  # share of a step spent waiting for data: a fifth of the bill
SAVING = 0.1  # share of the time spent saving
FULL = 0.9  # share of the memory; fragments and page cache need the rest
CLIPPED = 0.9  # share of steps at the clip: the step's length is then the clip's, not the data's
CHANGE = 1e-3  # share of a score that counts as a change at all (0.03 dB of 26)
GAIN = 0.05  # share of all progress that may come in the last quarter, or be lost since the best
LATE = 0.75  # of the volumes; the last quarter begins

# finding: level, what it means, what to try
ADVICE = {
    "stalled": ("wrong", "The job hangs, or was killed without a warning.",
                "Read the end of its output; run the same command again, it goes on."),
    "stopped": ("look", "It heard a signal, mostly the queue's time limit, and saved.",
                "Run the same command again: it goes on where it stopped."),
    "not finite": ("wrong", "Steps are thrown away, or the training gave up.",
                   "Always the same people: look at their scans. Others: lower lr to a third."),
    "rarely not finite": ("look", "Single steps were thrown away; the rest is sound.",
                          "If the same people come again, look at their scans."),
    "wrong scale": ("wrong", "The numbers are not in the unit that the network was made for.",
                    "Run `dsnb prepare` again, then all after it; mix no two VAEs' latents."),
    "diverged": ("wrong", "The training moves away from its goal.",
                 "Lower lr to a third, lengthen warmup; start again with --start scratch."),
    "jumped": ("look", "It was thrown far back, and recovered.", "Lower lr, or lengthen warmup."),
    "KL diverged": ("wrong", "The posterior has left its range, where no gradient brings it back.",
                    "Give kl a small weight above 0 (1e-6), lower lr; then --start scratch."),
    "collapsed": ("wrong", "The latents say nothing of the person: the mean volume is drawn.",
                  "Lower kl a hundredfold, or set kl_warmup 0.3 or free_bits 0.05."),
    "mostly idle": ("look", "Most of the latent carries nothing.",
                    "Lower kl, or save memory with fewer channels."),
    "starved": ("wrong", "The processor waits for data.",
                "Use a faster disk; give the job memory for all of volumes.npy."),
    "slow saves": ("look", "Much of the time is spent writing checkpoints.",
                   "Raise checkpoint_every, or use a faster disk."),
    "memory nearly full": ("look", "A slightly larger run will be killed.",
                           "Lower batch, or raise accumulate; recompute; a smaller width."),
    "always clipped": ("look", "Steps are as long as clip says, whatever the data say.",
                       "Lower lr to a third; if it then learns no better, raise clip."),
    "growing gradient": ("look", "It may diverge later.", "Lower lr to a third."),
    "still learning": ("look", "It was best at the end, and not yet flat.",
                       "Train longer: double volumes (a generator: read its privacy audit again)."),
    "over-fitted": ("look", "It learns training people by heart; the best checkpoint is kept.",
                    "Stop earlier, take a smaller width, or more people."),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a run left: its log, its settings, and its newest whole checkpoint (or None)."""

    folder: Path
    stats: pd.DataFrame
    plan: Training
    settings: dict
    payload: dict | None

    def fit(self) -> pd.Series:
        """Return the error that training lowers, each finite step (KL and critic left out)."""
        names = [name for name in FIT if name in self.stats] or ["loss"]
        return self.stats.reindex(columns=names).sum(axis=1, min_count=len(names)).dropna()

    def scores(self) -> pd.DataFrame:
        """Return the rows of the validations."""
        return self.stats.dropna(subset=["score"])


def find(word: str, root: Path) -> Path:
    """Return the run folder of this path, or of this name under the data root or its `runs`."""
    for place in (Path(word).expanduser(), root / word, root / "runs" / word):
        if (place / "stats.jsonl").is_file() and (place / "config.json").is_file():
            return place
    wanted = "a folder with stats.jsonl and config.json, or its name under the data root"
    raise BadInput("E-RUN", "command line", "the run", word, wanted, "say for example runs/vae")


def read(folder: Path) -> Run:
    """Read what a run left; refuse a log with no row, or half a row (E-LOG)."""
    config = json.loads((folder / "config.json").read_text())
    try:
        stats = training.read_stats(folder)
    except json.JSONDecodeError:
        stats = pd.DataFrame()
    if stats.empty:
        fix = "wait for the first step, or run the training again: it mends its log"
        raise BadInput("E-LOG", folder.name, "its log", "empty or cut", "whole rows", fix)
    payload = checkpoints.newest(folder) or checkpoints.newest(folder, "best")
    plan = Training(**config["training"])
    return Run(folder, stats, plan, config.get("settings", {}), payload)


def _progress(run: Run) -> tuple[str, str]:
    seen, goal = run.stats["seen"].iloc[-1], run.plan.volumes
    age = time.time() - (run.folder / "stats.jsonl").stat().st_mtime
    if seen >= goal:
        return "", f"finished: {seen} of {goal} volumes"
    if (run.folder / checkpoints.MARKER).is_file():
        return "stopped", f"{seen} of {goal} volumes, and a marker of the signal"
    quiet = age > max(run.plan.patience_s, BLOCKS * run.stats["seconds"].max())
    return "stalled" if quiet else "", f"{seen} of {goal} volumes, the last {age:.0f} s ago"


def _numbers(run: Run) -> tuple[str, str]:
    if "skipped_names" not in run.stats:
        return "", "every step was finite"
    bad = run.stats["skipped_names"].dropna()
    whom = Counter(name for names in bad for name in names).most_common(3)
    share = len(bad) / len(run.stats)
    often = share > RARE or bad.index[-1] == run.stats.index[-1]
    people = ", ".join(f"{name} ({count} times)" for name, count in whom)
    seen = f"{len(bad)} of {len(run.stats)} steps ({share:.1%}), most often with {people}"
    return "not finite" if often else "rarely not finite", seen


def _scale(run: Run) -> tuple[str, str]:
    first = run.stats.filter(["velocity", "l1"]).dropna()[:1].squeeze(axis=0)  # nothing learnt yet
    if "velocity" in first:  # an untrained flow is off by the mean variance of noise and components
        sd = np.sqrt(max(0.0, 2 * first["velocity"] - 1))
        seen = f"the components' SD is {sd:.2f} (1 is right)"
        return "" if COMPONENT_SD[0] < sd < COMPONENT_SD[1] else "wrong scale", seen
    unit = run.settings.get("residual_scale")
    if "l1" not in first or unit is None:
        return "none", "no volumes in this run"
    sound = UNITS[0] < first["l1"] / unit < UNITS[1]
    seen = f"the first L1 is {first['l1'] / unit:.2g} times residual_scale"
    if run.payload:
        mean = run.payload["ema"]["mean_volume"].numpy()
        bright = np.quantile(mean[mean > mean.max() / 10], 0.99)
        sound &= LEVEL[0] < bright < LEVEL[1]
        seen += f"; bright tissue is {bright:.2g}, and white matter should be near 0.85"
    return "" if sound else "wrong scale", seen


def _blocks(values: pd.Series) -> np.ndarray:
    """Return the median of each tenth."""
    return np.array([np.median(part) for part in np.array_split(values.to_numpy(float), BLOCKS)])


def _course(run: Run) -> tuple[str, str]:
    fit = run.fit()
    if len(fit) < FEWEST:
        return "none", f"{len(fit)} finite steps are too few to judge"
    course = np.r_[fit.iloc[0], _blocks(fit)]
    worst, now = (course / np.minimum.accumulate(course)).max(), course[-1] / course.min()
    seen = f"the error went from {course[0]:.3g} to {course[-1]:.3g}, "
    seen += f"at worst {worst:.2g} times an earlier one"
    return "diverged" if now > RISE else "jumped" if worst > RISE else "", seen


def _posterior(run: Run) -> tuple[str, str]:
    if run.payload is None:
        return "none", "no checkpoint yet"
    last, model = run.scores().iloc[-1], vae.restore(run.payload).to("meta")  # shapes alone
    nats = last["kl_nats"] / model.encode(model.mean_volume)[0].numel()
    low, high = last["logvar_low"], last["logvar_high"]
    out = nats > NATS or low < LOGVAR_RANGE[0] + CLAMP or high > LOGVAR_RANGE[1] - CLAMP
    seen = f"log-variance {low:.1f} to {high:.1f} (its ends: {LOGVAR_RANGE[0]:.0f} and "
    seen += f"{LOGVAR_RANGE[1]:.0f}), KL {nats:.2g} nats a latent element"
    return "KL diverged" if out else "", seen


def _latent(run: Run) -> tuple[str, str]:
    first, last = run.scores().iloc[0], run.scores().iloc[-1]
    share, early = last["active_share"], last["seen"] < EARLY * run.plan.volumes
    seen = f"{share:.1%} of the latent is active, KL {last['kl_nats']:.2g} nats a person; "
    seen += f"validation {first['score']:.1f} dB at first, {last['score']:.1f} dB now"
    found = "collapsed" if share < IDLE else "mostly idle" if share < FEW else ""
    return "" if early else found, seen


def _loader(run: Run) -> tuple[str, str]:
    later = run.stats[len(run.stats) // BLOCKS :]  # the first steps fill the page cache
    share = later["load_s"].sum() / later["seconds"].sum()
    seen = f"{share:.0%} of a step is waiting for data; without it {1 / (1 - share):.1f} times "
    return "starved" if share > STARVED else "", seen + "as fast"


def _saves(run: Run) -> tuple[str, str]:
    saves = run.stats["save_s"].dropna()
    share = saves.sum() / (saves.sum() + run.stats["seconds"].sum())
    seen = f"{share:.0%} of the time is saving, {saves.median():.2g} s each"
    return "slow saves" if share > SAVING else "", seen


def _memory(run: Run) -> tuple[str, str]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
    peak, total = run.stats["peak_mib"].max() / 1024, total / 2**30
    seen = f"at most {peak:.1f} GiB; this machine has {total:.1f} GiB"
    return "memory nearly full" if peak > FULL * total else "", seen


def _rate(run: Run) -> tuple[str, str]:
    norms = run.stats.loc[run.stats["seen"] > run.plan.warmup * run.plan.volumes, "grad_norm"]
    if norms.count() < FEWEST:
        return "none", f"{norms.count()} steps after the warm-up are too few to judge"
    share, course = (norms.dropna() >= run.plan.clip).mean(), _blocks(norms.dropna())
    grown = course[-1] / course.min()
    seen = f"{share:.0%} of the gradients reach the clip, the last are {grown:.1f} times the least"
    growing = "growing gradient" if grown > GRADIENT_RISE else ""
    return "always clipped" if share > CLIPPED else growing, seen


def _length(run: Run) -> tuple[str, str]:
    scores, places = run.scores()["score"].to_numpy(), run.scores()["seen"].to_numpy()
    if len(scores) < 4:
        return "none", f"{len(scores)} validations are too few to judge"
    best, late = scores.max(), places > LATE * places[-1]
    gain, lost = scores[late].max() - scores[~late].max(), best - scores[-1]
    seen = f"score {scores[-1]:.4g} at the end, best {best:.4g} after {places[scores.argmax()]} "
    seen += f"volumes, {gain:+.2g} in the last quarter"
    counts = max(GAIN * np.ptp(scores), CHANGE * abs(best))
    fit, tenth = run.fit(), max(1, len(run.stats) // BLOCKS)
    then = fit[run.stats["seen"] <= places[scores.argmax()]][-tenth:].median()
    if lost > counts and fit[-tenth:].median() < then:  # the error falls on, unseen people lose
        return "over-fitted", seen
    return "still learning" if gain > counts else "", seen


# check: how, and the columns of the log that it needs
CAUSES = {
    "progress": (_progress, ()), "numbers": (_numbers, ()), "scale": (_scale, ()),
    "course": (_course, ("loss",)), "posterior": (_posterior, ("score", "kl_nats")),
    "latent": (_latent, ("score", "active_share")), "loader": (_loader, ("load_s",)),
    "saves": (_saves, ("save_s",)), "memory": (_memory, ("peak_mib",)),
}  # fmt: skip
EFFECTS = {"rate": (_rate, ("grad_norm",)), "length": (_length, ("score",))}


def diagnose(folder: Path) -> list[dict[str, str]]:
    """Return a row a check: check, level (ok, look, wrong, none), finding, seen, means, try.

    `none` is a check that could not be made; what another fault brings about is not judged beside
    it. Rows may name people of the training: they are for whoever may see these.
    """
    run, rows = read(folder), []
    known = {*run.stats.dropna(axis=1, how="all")}  # a score that is never finite is not known
    for name, (check, needed) in (CAUSES | EFFECTS).items():
        if not {*needed} <= known:
            finding, seen = "none", "not in this log"
        elif name in EFFECTS and any(row["level"] == "wrong" for row in rows):
            finding, seen = "none", "not judged before the above is mended"
        else:
            finding, seen = check(run)
        rows.append(answer(name, finding, seen, ADVICE))
    return rows


def answer(check: str, finding: str, seen: str, advice: dict) -> dict[str, str]:
    """Return the row of a check: its light, what was found and seen, what that means, a way out."""
    level, means, fix = advice.get(finding, (finding or "ok", "", ""))
    row = {"check": check, "level": level, "finding": finding if means else "", "seen": seen}
    return row | {"means": means, "try": fix}


def as_text(rows: list[dict[str, str]]) -> str:
    """Return the report: a light a check, and under what is not ok its meaning and a way out."""
    lines = []
    for row in rows:
        finding = f"{row['finding']}: " if row["finding"] else ""
        lines.append(f"{row['level']:<6}{row['check']:<11}{finding}{row['seen']}")
        lines += [f"{'':<17}{row['means']} {row['try']}"] if finding else []
    wrong, look = (sum(row["level"] == level for row in rows) for level in ("wrong", "look"))
    first = "; begin with the first" if wrong > 1 else ""
    return "\n".join([*lines, f"{wrong} wrong, {look} to look at{first}"])
