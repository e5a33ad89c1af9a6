"""How like two volumes are: PSNR, SSIM and spectrum inside the brain, and region volumes."""

import numpy as np
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy import ndimage

from dsnb import rivals, space
from dsnb.config import Study

BANDS = (0.0, 0.05, 0.1, 0.2, 0.5)  # cycles a voxel, of the residual's spectrum


def psnr_db(volumes: np.ndarray, others: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the PSNR (dB, data range 1) of each volume (N, X, Y, Z) inside a brain mask, (N,)."""
    difference = volumes[:, brain].astype(np.float32) - others[:, brain].astype(np.float32)
    return -10 * np.log10((difference**2).mean(1))


def ssim(volumes: np.ndarray, others: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the mean SSIM of each volume (N, X, Y, Z) over window centres in the brain, (N,).

    Gaussian window of 11 voxels, SD 1.5 (Wang 2004); an empty background would flatter it.
    """
    inner = brain[5:-5, 5:-5, 5:-5]
    means = []
    for one, other in zip(volumes, others):
        pair = (torch.as_tensor(np.asarray(v, np.float32))[None, None] for v in (one, other))
        maps, _ = compute_ssim_and_cs(*pair, 3, (11,) * 3, (1.5,) * 3, data_range=1.0)
        means.append(maps[0, 0].numpy()[inner].mean())
    return np.array(means)


def radial_spectrum(volumes: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies (F,) in cycles a voxel and the mean power (F,) of (N, X, Y, Z) there.

    Only the brain's inside counts: its mean is removed and a mask with soft edges, three voxels
    in, keeps the outline out of the spectrum.
    """
    inner = ndimage.binary_erosion(brain, iterations=3)
    window = ndimage.gaussian_filter(inner.astype(np.float32), 1.5) * brain
    axes = np.meshgrid(*(np.fft.fftfreq(n) for n in brain.shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    bins = np.linspace(0, 0.5, min(brain.shape) // 2 + 1)
    place, total = np.digitize(radius.ravel(), bins), np.zeros(len(bins) + 1)
    for volume in volumes:
        values = np.asarray(volume, np.float32)
        values = (values - np.average(values, weights=window)) * window
        total += np.bincount(place, (np.abs(np.fft.fftn(values)) ** 2).ravel(), len(bins) + 1)
    counts = np.bincount(place, minlength=len(bins) + 1)
    power = total / counts.clip(1) / len(volumes)
    return (bins[1:] + bins[:-1]) / 2, power[1 : len(bins)]


def region_logs(volumes: np.ndarray, template: np.ndarray, study: Study) -> np.ndarray:
    """Return log region volumes (N, R; log ml) of volumes, by registration to the template."""
    fields = rivals.register_volumes(volumes, template, study)
    return np.log(rivals.region_volumes(fields, study.grid))


def region_errors(before: np.ndarray, after: np.ndarray) -> dict[str, dict[str, float]]:
    """Compare log region volumes (N, R) of reconstructions with their originals', per cent.

    `bias_pct` is the mean change, which every person shares; `spread_pct` the SD around it.
    """
    change = 100 * np.expm1(after - before)
    return {
        name: {"bias_pct": change[:, i].mean(), "spread_pct": change[:, i].std(ddof=1),
               "error_pct": np.abs(change[:, i]).mean()}
        for i, name in enumerate(space.REGIONS)
    }  # fmt: skip


def effect_kept(before: np.ndarray, after: np.ndarray, without: np.ndarray) -> float:
    """Return which share of a condition's region effects survives reconstruction.

    `before` and `after` (2N, R) are log volumes of originals and reconstructions; `without` (2N,)
    marks each pair's half that lacks the condition, pairs in the same order. Slope through 0.
    """
    real, drawn = (logs[~without].mean(0) - logs[without].mean(0) for logs in (before, after))
    return float(real @ drawn / (real @ real))


def residual_bands(drawn: np.ndarray, given: np.ndarray, brain: np.ndarray) -> list[dict]:
    """Return the power (dB) of the residual against that of the volumes, by frequency band."""
    frequencies, left = radial_spectrum(given - drawn, brain)
    whole = radial_spectrum(given, brain)[1]
    rows = []
    for low, high in zip(BANDS, BANDS[1:]):
        inside = (frequencies >= low) & (frequencies < high)
        shells = frequencies[inside] ** 2  # voxels of a shell, up to a factor
        share = 10 * np.log10((left[inside] @ shells) / (whole[inside] @ shells))
        rows.append({"from": low, "to": high, "residual_db": share})
    return rows
