"""Every setting of the study: one frozen dataclass a stage, presets side by side.

Lengths are counted in volumes seen, so one node and eight share an axis.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from dsnb.checks import BadInput
from dsnb.space import GRIDS, Grid


@dataclass(frozen=True)
class Cohort:
    """Who is in the phantom, and how people are split; counts are people."""

    euploid: int = 400
    ds: int = 150
    sham: int = 30  # euploid test people drawn again with a sham field of equal size
    repeat: int = 30  # people of each group who come a second time, 16 months later
    native: int = 12  # people, half of them DS, also scanned near 1 mm in the scanner's space
    severity: float = 1.0  # scales the local disease field, 0 to 2
    confounded_motion: bool = True  # one arm: at CLINIC, motion follows group and age
    external_euploid: bool = True  # False: EXTERNAL has DS only, which gives sensitivity only
    noise: float = 0.02  # SD of the Rician noise, white matter near 0.85 [E]
    seed: int = 1
    euploid_split: tuple[int, ...] = (200, 20, 60, 60, 60)  # shares, order of EUPLOID_SPLITS
    ds_split: tuple[int, ...] = (90, 15, 45)  # shares, order of DS_SPLITS


@dataclass(frozen=True)
class Training:
    """How one model is trained; the same loop serves VAE and diffusion."""

    volumes: int = 4000  # volumes seen
    batch: int = 2  # global batch, over all ranks and accumulation steps; steps count, not size
    accumulate: int = 1  # micro-batches summed before a step
    lr: float = 1.5e-3  # peak learning rate, AdamW
    warmup: float = 0.1  # share of `volumes` with rising rate
    weight_decay: float = 1e-4
    clip: float = 1.0  # gradient norm
    ema: float = 0.99  # decay of the exponential moving average, a step
    checkpoint_every: int = 1000  # volumes seen between checkpoints
    checkpoint_minutes: float = 15.0  # at most between checkpoints; not every cluster warns
    validate_every: int = 500  # volumes seen between validations
    patience_s: float = 600.0  # without any progress before a hanging job ends; under 2 hours
    seed: int = 1


@dataclass(frozen=True)
class Vae:
    """The normative VAE: which network, which latent, and the weights of its loss terms."""

    architecture: Literal["lean", "monai", "morph"] = "lean"
    latent: Literal["quarter", "eighth", "pooled", "flat"] = "quarter"  # grid: 1/4, 1/8, 4^3, none
    width: int = 32  # channels of the residual blocks of `lean` and `morph`
    widths: tuple[int, ...] = (8, 16, 32)  # channels of the levels of `monai`
    blocks: int = 2  # residual blocks in the encoder and again in the decoder
    channels: int = 8  # latent channels; the length of a flat code
    departure: bool = True  # see and draw the departure from the training mean volume
    residual_scale: float = 0.15  # unit of the departure [E]
    quiet_start: bool = True  # exit and residual branches begin at zero
    recompute: bool = False  # activations in the backward pass instead of keeping them
    mse: float = 2.0  # weight of the squared error beside L1
    kl: float = 1e-6  # weight of the KL term (near an autoencoder, as latent diffusion wants)
    kl_warmup: float = 0.0  # share of the volumes over which the KL's weight rises
    free_bits: float = 0.0  # nats a latent element that the KL leaves alone
    roughness: float = 0.01  # weight of the velocity's squared slope, of `morph` [E]
    perceptual: float = 0.0  # weight of the distance of in-domain features
    adversarial: float = 0.0  # weight of a patch critic's verdict
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Maps:
    """Anomaly maps: the norms, their tuning and the error rates."""

    nuisance: tuple[int, ...] = (0, 20, 80, 160)  # nuisance components, chosen on validation
    smoothing_mm: tuple[float, ...] = (0.0, 6.0, 12.0, 18.0)  # Gaussian FWHM, chosen likewise
    # Whose z, p and q are written: the plain winner until a deep norm beats it.
    norm: Literal["tbm", "tbm_pca", "regions", "parcels", "vbm", "image", "pca", "latent",
                  "restoration", "undo"] = "tbm"  # fmt: skip
    group_smoothing_mm: float = 6.0  # FWHM of group maps: they need less than one person's [E]
    permutations: int = 500  # of people, behind the corrected p of group maps
    q: float = 0.05  # false-discovery rate
    truth_change: float = 0.1  # |log-Jacobian| that counts as changed
    demons_iterations: int = 30  # of the TBM registration at half resolution; a third at full
    template_people: int = 40  # euploid fit people whose registered mean is the TBM template
    template_rounds: int = 2  # registrations to the mean, each sharpening it
    processes: int = 2  # registrations at a time, one thread each; changes no result
    changes: int = 1  # generic changes planted on each validation euploid, for tuning
    bootstraps: int = 1000
    seed: int = 1


@dataclass(frozen=True)
class Undo:
    """The network that has learnt, on euploids, to give back planted volume changes."""

    planted: int = 100  # fit people changed and registered again; 200 taught no more
    widths: tuple[int, ...] = (32, 64, 96)  # channels of the levels of a U-Net at half resolution
    training: Training = field(
        # Thrice as long found more of generic changes and less of the disease's (analysis plan).
        default_factory=lambda: Training(volumes=6_000, batch=4, lr=2e-3, weight_decay=1e-3,
                                         checkpoint_every=2_000)
    )  # fmt: skip


@dataclass(frozen=True)
class Sites:
    """A simulated scanner for held-out people, and how many of its euploids are known. [E]"""

    known: tuple[int, ...] = (10, 20, 50)
    draws: int = 30  # of who is where and who is known
    contrast: float = 1.15  # exponent on intensity over white matter: darkens grey matter
    gain: float = 1.02  # error of the white-matter anchor
    bias: float = 0.05  # SD of the log bias field, half the site's, half the person's
    noise: float = 0.03  # SD of the Rician noise, white matter near 0.85
    blur_mm: float = 5.0  # Gaussian FWHM
    seed: int = 1


@dataclass(frozen=True)
class Strata:
    """Discrimination, staging and strata on people unseen by the VAE."""

    outer_folds: int = 5
    inner_folds: int = 3
    penalties: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # mean variances
    permutations: int = 1999  # of labels
    bootstraps: int = 1000
    nulls: int = 199  # cohorts without structure, behind the p of strata
    null_draws: int = 100  # cohorts with and without subtypes, for the false discovery of strata
    seed: int = 1


@dataclass(frozen=True)
class Further:
    """Phantom people beside the study's, whom none of its models learns by heart."""

    public: int = 400  # euploids: an open cohort that anybody may learn from
    reference: int = 90  # people with DS whom an attacker has besides
    euploid: int = 130  # of nobody's models: they judge
    ds: int = 60  # likewise


@dataclass(frozen=True)
class Diffusion:
    """The generator on the latents: what it draws, how it learns and how it is sampled."""

    basis: Literal["public", "members", "grid"] = "public"  # components, or every latent position
    components: int = 100  # beside the directions of regions; at most people - 1
    denoiser: Literal["mlp", "unet"] = "mlp"  # `unet` (MONAI's) needs basis `grid`
    width: int = 256  # of the MLP; a quarter of it are the channels of the U-Net
    blocks: int = 2
    prediction: Literal["velocity", "epsilon", "sample"] = "velocity"
    drop_condition: float = 0.1  # share of rows trained without condition, for guidance
    sampler: Literal["euler", "ddim", "ddpm"] = "euler"
    steps: int = 20  # of the sampler
    guidance: float = 0.0  # 0: as strong as it is in validation people
    synthetic: int = 100  # volumes a group
    training: Training = field(
        default_factory=lambda: Training(
            volumes=6_000, batch=128, lr=1e-4, ema=0.95, checkpoint_every=3_000,
            validate_every=1_000,  # 40,000 learnt training people by heart (AUC 0.75)
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Release:
    """Real against synthetic people, and the audit before a synthetic cohort goes out."""

    components: int = 32  # principal components of the feature space
    attack_components: int = 300  # of the space in which means are compared
    neighbours: int = 5  # k of density and coverage (Naeem et al., arXiv 2002.09797)
    pairs: int = 12  # volumes compared by MS-SSIM, a group and side
    margin_d: float = 0.2  # equivalence margin of a region effect, within-group SDs
    reconstructions: int = 30  # held-out people a group behind the ceiling
    copies: int = 20  # training people planted as copies, each in every way
    tail: float = 0.005  # held-out people expected below the near-copy threshold
    draws: int = 4  # keyed noise draws at each flow time of the membership attack
    overfit_people: int = 20  # of the deliberately over-fitted model
    overfit_volumes: int = 20_000  # volumes seen by it
    bootstraps: int = 1000
    seed: int = 1


@dataclass(frozen=True)
class Search:
    """A search over VAE settings by Optuna, each trial a short training."""

    trials: int = 4  # beside the defaults, which are trained for the same budget
    volumes: int = 160  # volumes seen by each
    seed: int = 1


@dataclass(frozen=True)
class Scaling:
    """Data-parallel benchmarks: here in alternating rounds, and on a cluster."""

    processes: int = 2  # against one; both share the cores
    rounds: int = 9
    steps: int = 4  # timed steps a round
    parity_steps: int = 40
    parity_processes: int = 4  # beside those, for losses and weights alone; 0: none
    batch: int = 4
    cluster_batch: int = 64  # global batch of strong scaling on a cluster, as of `full`
    cluster_share: int = 2  # volumes a rank of weak scaling on a cluster
    cluster_steps: int = 10  # timed steps


@dataclass(frozen=True)
class Study:
    """One preset: the grid, the people and every stage's settings."""

    name: str  # of the preset, chosen by --preset; not to be set
    hardware: str  # for which it was made; not to be set
    wall_time: str  # of the whole study on it; not to be set
    grid: Grid
    cohort: Cohort = field(default_factory=Cohort)
    vae: Vae = field(default_factory=Vae)
    maps: Maps = field(default_factory=Maps)
    undo: Undo = field(default_factory=Undo)
    sites: Sites = field(default_factory=Sites)
    strata: Strata = field(default_factory=Strata)
    further: Further = field(default_factory=Further)
    diffusion: Diffusion = field(default_factory=Diffusion)
    release: Release = field(default_factory=Release)
    search: Search = field(default_factory=Search)
    scaling: Scaling = field(default_factory=Scaling)


SMALL = Study("small", "2 CPU cores, 8 GB", "an hour", GRIDS["small"])
SMOKE = Study(
    "smoke",
    "2 CPU cores",
    "3 min",
    GRIDS["smoke"],
    Cohort(euploid=48, ds=24, sham=4, repeat=4, native=2),
    Vae(width=16, blocks=1, channels=4, training=Training(volumes=96, checkpoint_every=32,
                                                          validate_every=48)),
    Maps(nuisance=(0, 5), smoothing_mm=(0.0, 6.0), demons_iterations=8, bootstraps=100),
    Undo(8, (8, 16), Training(volumes=96, batch=4, checkpoint_every=48, validate_every=48)),
    Sites(draws=5),
    Strata(outer_folds=3, penalties=(0.1, 1.0), permutations=20, bootstraps=100, nulls=20,
           null_draws=5),
    Further(public=24, reference=6, euploid=6, ds=4),
    Diffusion(components=12, width=64, blocks=1, steps=5, synthetic=8,
              training=Training(volumes=4096, batch=64, lr=1e-4, checkpoint_every=2048,
                                validate_every=2048)),
    Release(components=6, attack_components=20, neighbours=2, pairs=2, reconstructions=3, copies=4,
            draws=2, overfit_people=6, overfit_volumes=8_192, bootstraps=100),
    Search(trials=2, volumes=16),
    Scaling(rounds=2, steps=2, parity_steps=4, cluster_batch=8, cluster_steps=3),
)  # fmt: skip
MEDIUM = Study(
    "medium",
    "1 GPU of 24 GB",
    "not yet run",
    GRIDS["medium"],
    vae=Vae(width=64, training=Training(volumes=20_000, batch=4, lr=1e-3, ema=0.999,
                                        checkpoint_every=2_000, validate_every=2_000)),
)  # fmt: skip
FULL = Study(
    "full",
    "1 to 8 nodes of 4 GPUs, 64 GB each",
    "not yet run",
    GRIDS["full"],
    vae=Vae(width=256, training=Training(volumes=200_000, batch=64, lr=1e-3, ema=0.999,
                                         checkpoint_every=10_000, validate_every=10_000)),
)  # fmt: skip
PRESETS = {study.name: study for study in (SMOKE, SMALL, MEDIUM, FULL)}


def load_study(preset: str) -> Study:
    """Return a preset by name; an unknown one is refused with the names that exist."""
    if preset not in PRESETS:
        known = "one of " + ", ".join(PRESETS)
        raise BadInput("E-PRESET", "preset", "its name", preset, known, "choose a known preset")
    return PRESETS[preset]


def parse_shard(shard: str, verb: str) -> tuple[int, int]:
    """Read k/n, the k-th of n shares of a verb's rows; refuse anything else (E-SHARD)."""
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        expected = "k/n with k from 1 to n"
        raise BadInput("E-SHARD", verb, "shard", shard, expected, "say for example 1/8")
    return int(part), int(parts)


def vae_settings(plain: dict) -> Vae:
    """Return the VAE's settings that were written as plain JSON types."""
    own = {"training": Training(**plain["training"]), "widths": tuple(plain["widths"])}
    return Vae(**plain | own)


__all__ = ["PRESETS", "Study", "load_study", "parse_shard", "replace", "vae_settings"]
