"""What a decoder's mean leaves out: a remainder of latents, and the power of fine detail.

A VAE's reconstruction is the mean of p(x | z), and a mean is blurred. Latents outside the
components are drawn as Gaussian fields of measured spread and spectrum; fine detail is raised to
the power that it has in scans. Noise of that power in its place made white matter grainy (ledger).
"""

import numpy as np
import torch
from scipy import ndimage

from dsnb import vae
from dsnb.rivals import HALO

ROUNDS = 2  # of measuring the gain; a third changed nothing
MOST_GAIN = 8.0  # beyond it, what is raised is not anatomy [E]
LEAST_SHARE = 1e-3  # of the mean variance of a field, below which a spread is not told from zero


def _shells(shape: tuple[int, ...]) -> np.ndarray:
    """Return the frequency (X, Y, Z), cycles a voxel, of each place of a transform."""
    axes = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes))


def amplitude(fields: np.ndarray) -> np.ndarray:
    """Return the radial amplitude (X, Y, Z) of fields (N, X, Y, Z); white noise has 1 everywhere.

    Filtered by it, white noise keeps its variance and takes on the fields' spectrum.
    """
    radius = _shells(fields.shape[1:])
    power = np.mean([np.abs(np.fft.fftn(one)) ** 2 for one in fields], axis=0)
    place = np.round(radius * min(fields.shape[1:])).astype(int).ravel()
    mean = np.bincount(place, power.ravel()) / np.bincount(place).clip(1)
    found = mean[place].reshape(radius.shape)
    return np.sqrt(found / found.mean()).astype(np.float32)


def colour(noise: torch.Tensor, amplitude: torch.Tensor) -> torch.Tensor:
    """Return white noise (..., X, Y, Z) with this amplitude (X, Y, Z) over frequency."""
    axes = (-3, -2, -1)
    return torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * amplitude, dim=axes).real


def fit_remainder(left: np.ndarray) -> dict[str, np.ndarray]:
    """Describe what components leave of latents, (N, C, d, h, w), by three tables.

    The spread of every position (C, d, h, w), the mixing of channels (C, C), and the amplitude over
    frequency (d, h, w) of what is left when both are taken off.
    """
    spread = left.std(0)
    spread = np.maximum(spread, np.sqrt(LEAST_SHARE * (left**2).mean()))
    standard = left / spread
    flat = np.moveaxis(standard, 1, 0).reshape(left.shape[1], -1)
    mixing = np.linalg.cholesky(np.corrcoef(flat) + 1e-6 * np.eye(len(flat)))
    alone = np.tensordot(np.linalg.inv(mixing), np.moveaxis(standard, 1, 0), 1)
    fields = alone.reshape(-1, *left.shape[2:])
    return {"left_spread": spread, "left_mixing": mixing, "left_amplitude": amplitude(fields)}


def draw_remainder(noise: torch.Tensor, spread, mixing, amplitude) -> torch.Tensor:
    """Return latents' remainders (N, C, d, h, w) of white noise of that shape."""
    return spread * torch.einsum("ab,nbxyz->naxyz", mixing, colour(noise, amplitude))


def fit_gain(given: np.ndarray, drawn: np.ndarray, brain: np.ndarray) -> dict[str, np.ndarray]:
    """Return the gain (F,) by frequency (F,), cycles a voxel, that gives drawn volumes their power.

    The power wanted is that of unseen volumes (N, X, Y, Z) in the brain; measured once more behind
    the gain, since what is cut off at 0 and at the rim takes power away.
    """
    frequency, wanted = vae.radial_spectrum(given, brain)
    gain = np.ones_like(wanted)
    for _ in range(ROUNDS):
        found = vae.radial_spectrum(sharpen(drawn, gain, frequency), brain)[1]
        gain = np.clip(gain * np.sqrt(wanted / found), 1, MOST_GAIN)
    return {"gain": gain, "gain_frequency": frequency}


def sharpen(drawn: np.ndarray, gain: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return drawn volumes (N, X, Y, Z) with their fine detail raised, intensity 0 to 1.5.

    Stripped scans have a brain and zeros: the faint rim that a decoder draws goes, and so do specks
    beside the largest piece.
    """
    by_place = np.interp(_shells(drawn.shape[1:]), frequency, gain)
    made = np.zeros(drawn.shape, np.float32)
    for place, one in enumerate(drawn):
        raised = np.fft.ifftn(np.fft.fftn(one) * by_place).real
        pieces, _ = ndimage.label((one >= HALO) & (raised >= HALO))
        sizes = np.bincount(pieces.ravel())[1:]
        if len(sizes):
            brain = pieces == 1 + sizes.argmax()
            made[place, brain] = raised[brain].clip(max=1.5)
    return made


def slopes(volume: np.ndarray) -> np.ndarray:
    """Return the gradient's magnitude (X, Y, Z) of a volume, intensity a voxel."""
    parts = np.gradient(np.asarray(volume, np.float32))
    return np.sqrt(sum(part**2 for part in parts))
