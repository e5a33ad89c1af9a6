"""The command line: one verb a stage; flags are the settings of the chosen preset."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import dsnb
from dsnb import (
    anomaly,
    bids,
    cohort,
    diffusion,
    distributed,
    figures,
    health,
    latents,
    pages,
    phantom,
    privacy,
    readers,
    record,
    report,
    scaling,
    search,
    shipped,
    vae,
    volumes,
)
from dsnb.checks import BadInput
from dsnb.config import PRESETS, SMALL, Study
from dsnb.health import samples

VERBS = (
    "phantom", "import", "prepare", "train", "encode", "map", "sample", "release", "health",
    "search", "bench", "study", "verify",
)  # fmt: skip
RELEASE_REFUSED, INTERRUPTED = 3, 130


@dataclass(frozen=True)
class Command:
    """Run one verb: flags, then the settings of --preset NAME (smoke, small, medium, full)."""

    # What to do; `dsnb --help` has a line on each.
    verb: Annotated[Literal[VERBS], tyro.conf.Positional]
    # `train`: vae, undo or diffusion. `health`: a run folder, or its name under the data root; or
    # synthetic, for the samples of a study.
    # `import`: the folder as received, and the BIDS folder to make.
    # `bench`: none, or what the ledger is filled with: speed, cost, steps, loader, links, batch; or
    # cluster, under our launcher. `search`: none, or what the ledger is filled with: ablations,
    # grids, trials, norms, severity, shift, power, planted, hard, latents, subtypes,
    # stages, synthesis, sharpness, coverage.
    # `map`: none; people (sub-ID) to report on from finished maps; readers, for a blinded pack;
    # agreement, and the sheets that readers have filled; or export, and the .safetensors file to
    # write its norm to. `release`: the new folder for the synthetic cohort, which is written if
    # the audit passed. `sample`: none, for the study's cohort; or a folder for further people, who
    # are not audited. `verify`: none, for the pages of the book; or the data root of another run,
    # whose numbers are compared with the book's.
    words: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    # For `import`: how the received folder is laid out; without it, `--raw` is taken in as it is.
    source: Annotated[Literal[("", *bids.LAYOUTS)], tyro.conf.arg(name="from")] = ""
    # For `prepare`: check every table and scan, report all problems, and stop.
    check: bool = False
    # For `prepare --check`: read scans again that were checked and have not changed.
    full: bool = False
    # For `prepare`, `map` and `sample`: this share of the scans, k/n; for the first two, a run
    # without it collects them all.
    shard: str = "1/1"
    # For `sample FOLDER`: people a group.
    n: int = 100
    # For `sample FOLDER`: of one group; of both where empty.
    group: Literal["", "euploid", "ds"] = ""
    # For `sample FOLDER`: their ages, for example 40:60; as in the study where empty.
    age: str = ""
    # For `sample FOLDER`: another seed draws other people.
    seed: int = 1
    # For `map sub-ID`: z and q at the voxels of the raw T1w, too.
    own_space: bool = False
    # For `map`: a trained norm, by its name (phantom-small, ...) or its .safetensors file.
    norm: str = ""
    # For `map --norm`: a TSV whose column participant_id names 5 to 30 euploids of your scanner.
    recentre: str = ""
    # For `train`: go on; or keep the old run aside and start from its weights, or from nothing.
    start: Literal["resume", "weights", "scratch"] = "resume"
    # For `search planted`: the phantom study's data root, whose network is tried on real scans.
    phantom: str = ""
    # For `study`: put pages and numbers into the book, and build it.
    publish: bool = True
    # Folder of all products; $DSNB_DATA or `data` where empty.
    data_root: str = ""
    # BIDS folder of T1w scans; the phantom where empty.
    raw: str = ""
    # Print the settings and stop.
    dry_run: bool = False
    # The settings themselves; `--preset NAME` chooses where they start from.
    study: Annotated[Study, tyro.conf.arg(name="")] = SMALL


def parse(words: list[str]) -> Command:
    """Read the preset first, then every flag on top of it; a wrong flag exits with 2."""
    preset = "small"
    if "--preset" in words:
        place = words.index("--preset")
        preset = words[place + 1] if place + 1 < len(words) else ""
        words = words[:place] + words[place + 2 :]
    if preset not in PRESETS:
        known = "one of " + ", ".join(PRESETS)
        raise BadInput("E-PRESET", "command line", "--preset", preset, known, "choose one of them")
    default = Command(verb="study", study=PRESETS[preset])
    return tyro.cli(Command, args=words, default=default, prog="dsnb")


def run(command: Command) -> int:
    """Run one verb; return the exit code."""
    study, verb = command.study, command.verb
    if command.dry_run:
        print(json.dumps(record.plain(asdict(command)), indent=1))
        return 0
    if verb == "study":
        pages.run_study(study.name, command.raw, command.data_root, command.publish)
        return 0
    if verb == "verify" and command.words:
        (run,) = expect(command, "at most one data root", 1)
        return pages.tell_moved(Path(run).expanduser(), pages.REPOSITORY / "book")
    if verb == "verify":
        pages.verify(pages.REPOSITORY / "book", pins=pages.REPOSITORY / "constraints.txt")
        return 0
    if verb == "prepare" and command.check:
        return check(command)
    if verb == "health":
        (word,) = expect(command, "one run folder", 1)
        root = record.find_root(command.data_root)
        if word == "synthetic":
            found = samples.diagnose(root, study)
        else:
            found = health.diagnose(health.find(word, root))
        print(health.as_text(found))
        return 2 if any(row["level"] == "wrong" for row in found) else 0
    if verb == "import" and command.source:
        source, into = expect(command, "two folders, IN OUT", 2)
        bids.import_cohort(command.source, Path(source).expanduser(), Path(into).expanduser())
        return 0
    _, root, raw = pages.open_study(study.name, command.data_root, command.raw)
    if verb == "release":
        (out,) = expect(command, "one new folder", 1)
        reasons = privacy.release(root, study, Path(out).expanduser(), raw)
        print("release: " + ("; ".join(reasons) if reasons else f"written to {out}"))
        return RELEASE_REFUSED if reasons else 0
    if verb == "train":
        trained = {"vae": vae, "undo": anomaly.undo, "diffusion": diffusion}
        known = " or ".join(trained)
        (model,) = expect(command, f"one model: {known}", 1)
        if model not in trained:
            fix = "say for example `train vae`"
            raise BadInput("E-MODEL", "command line", "model", model, known, fix)
        trained[model].train(root, study, start=command.start)
        return 0
    if verb == "map" and (command.words or command.own_space or command.norm or command.recentre):
        map_people(command, root, raw)
        return 0
    walk = {
        "phantom": lambda: phantom.make_cohort(root, study),
        "import": lambda: cohort.gather(root, study, raw),
        "prepare": lambda: prepare(root, study, raw, command.shard),
        "encode": lambda: latents.encode(root, study),
        "map": lambda: anomaly.map_departures(root, study, command.shard),
        "sample": lambda: sample(command, root),
        "search": lambda: search.take_part(root, study),
        "bench": lambda: scaling.bench(root, study),
        # The ledger's: hours, and resumable.
        "search ablations": lambda: search.ablate(root, study),
        "search grids": lambda: search.fill(root, study),
        "search trials": lambda: search.fill_trials(root, study),
        "search norms": lambda: search.compare(root, study),
        "search severity": lambda: search.trace(root, study),
        "search hard": lambda: search.grow_faint(root, study),
        "search latents": lambda: search.compare_latents(root, study),
        "search subtypes": lambda: search.draw_subtypes(root, study),
        "search stages": lambda: search.stage_more(root, study),
        "search coverage": lambda: search.draw_cohorts(root, study),
        "search synthesis": lambda: search.compare_generators(root, study),
        "search sharpness": lambda: search.compare_sharpness(root, study),
        "search shift": lambda: search.scan_sites(root, study),
        "search power": lambda: search.draw_studies(root, study),
        "search planted": lambda: search.map_folds(root, study, raw, command.phantom),
        "bench speed": lambda: scaling.bench_speed(root, study.grid),
        "bench cost": lambda: scaling.bench_cost(),
        "bench steps": lambda: scaling.bench_steps(),
        "bench loader": lambda: scaling.bench_loader(),
        "bench links": lambda: scaling.bench_links(),
        "bench batch": lambda: scaling.bench_batch(root, study),
        "bench cluster": lambda: scaling.bench_cluster(root, study),
    }
    words = verb if verb == "sample" else " ".join((verb, *command.words))
    if words not in walk:
        expect(command, "no further word", 0)
    walk[words]()
    return 0


def map_people(command: Command, root: Path, raw: Path | None) -> None:
    """Map by a trained norm, or read finished maps: a norm, readers' packs or people's reports."""
    if command.norm or command.recentre:
        expect(command, "no further word with --norm", 0)
        known = Path(command.recentre).expanduser() if command.recentre else None
        print(f"map: written to {shipped.apply(root, command.study, command.norm, known)}")
        return
    names = command.words or expect(command, "whose, sub-ID [sub-ID ...]", 1)
    if names[0] == "export":
        path = Path(expect(command, "export FILE.safetensors", 2)[1]).expanduser()
        print(f"map: the norm lies in {shipped.export(root, command.study, path, raw)}")
    elif names == ("readers",):
        print(f"map: the reader pack lies in {readers.make_pack(root, command.study)}")
    elif names[0] == "agreement":
        sheets = [Path(name) for name in names[1:]]
        print("\n".join(readers.agree(sheets, root / "readers" / "key" / readers.KEY)))
    else:
        report.report(root, command.study, names, raw, command.own_space)


def sample(command: Command, root: Path) -> None:
    """Draw the study's synthetic cohort, or the people asked for into a folder."""
    if not command.words:
        diffusion.sample(root, command.study)
        return
    (out,) = expect(command, "at most one folder", 1)
    ages, group = diffusion.parse_ages(command.age), command.group.replace("ds", "DS")
    asked = diffusion.Asked(command.n, group, ages, command.seed)
    diffusion.sample_more(root, command.study, Path(out).expanduser(), asked, command.shard)


def expect(command: Command, what: str, count: int) -> tuple[str, ...]:
    """Return the words after the verb; refuse another number of them (E-WORDS)."""
    if len(command.words) != count:
        fix = "see `dsnb --help`"
        said = " ".join(command.words) or "nothing"
        raise BadInput("E-WORDS", "command line", f"after {command.verb}", said, what, fix)
    return command.words


def check(command: Command) -> int:
    """Check a BIDS folder before anything is made of it; print the report, keep `check.json`.

    The data root is not marked by it: it may become that of any study.
    """
    if not command.raw:
        fix = "give your BIDS folder"
        raise BadInput("E-RAW", "command line", "--raw", "", "a folder to check", fix)
    root = record.find_root(command.data_root)
    found = cohort.check(Path(command.raw).expanduser(), command.full, root)
    print(cohort.as_text(found))
    record.write_json(root / "check.json", found)
    return 2 if found["problems"] else 0


def prepare(root: Path, study: Study, raw: Path | None, shard: str) -> None:
    """Prepare the scans; where all are done, draw the pictures to judge them by."""
    volumes.prepare(root, study, raw, shard=shard)
    if shard == Command.shard:
        figures.save_checks(root, study.grid)


def main() -> int:
    """Run the command line; a refusal exits with 2, a training that a signal stopped with 75."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(dsnb.__doc__.rstrip())
        return 0
    try:
        return run(parse(sys.argv[1:]))
    except BadInput as refusal:
        print(f"dsnb: {refusal}", file=sys.stderr)
        return 2
    except distributed.Stopped as stopped:
        print(f"dsnb: {stopped}", file=sys.stderr)
        return distributed.STOPPED
    except KeyboardInterrupt:
        print("\ndsnb: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
