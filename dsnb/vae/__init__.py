"""The normative VAE: how a euploid brain departs from the mean euploid brain, and back."""

from dsnb.vae.features import CODE as FEATURES
from dsnb.vae.features import (
    FeatureNet,
    FeatureTask,
    feature_plan,
    load_features,
    train_features,
)
from dsnb.vae.losses import adversarial_terms, kl_divergence, kl_term
from dsnb.vae.metrics import (
    effect_kept,
    psnr_db,
    radial_spectrum,
    region_errors,
    region_logs,
    residual_bands,
    ssim,
)
from dsnb.vae.networks import LeanVae, MonaiVae, MorphVae, NormativeVae, build
from dsnb.vae.quality import channel_table, evaluate, linear_rivals, noise_floor_db
from dsnb.vae.task import CODE, VaeTask, batches, decode, encode, load, reconstruct, restore, train
