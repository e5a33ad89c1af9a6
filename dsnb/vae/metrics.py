"""How like two volumes are, inside the brain: PSNR, SSIM and the radial power spectrum."""

import numpy as np
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy import ndimage


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
    window = ndimage.gaussian_filter(inner.astype(np.float32), 1.5)
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
