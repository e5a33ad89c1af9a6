"""What a decoder's mean leaves out, drawn again: Gaussian fields of a measured spectrum.

A VAE's reconstruction is the mean of p(x | z), and a mean has neither noise nor fine detail. Two
remainders are drawn beside it: of latents outside the components, and of voxels. Each takes from
data its spectrum and its spread, never a person's pattern.
"""

import numpy as np
import torch

from dsnb import vae
from dsnb.rivals import HALO

STEEPNESS = 16  # steps of the slope, each with a variance of its own
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


def _edges(drawn: np.ndarray) -> np.ndarray:
    """Return the squared slope (N, X, Y, Z) of volumes, a voxel."""
    return np.stack([sum(part**2 for part in np.gradient(one)) for one in drawn])


def fit_texture(given: np.ndarray, drawn: np.ndarray, brain: np.ndarray) -> dict[str, np.ndarray]:
    """Describe what a decoder leaves of unseen volumes (N, X, Y, Z): variance and spectrum.

    The variance follows the squared slope of what was drawn, in steps of equal numbers of voxels:
    the scanner's noise where it is flat, and edges that are drawn blurred; and a power a frequency.
    """
    left, slopes = given - drawn, _edges(drawn)
    x, y = slopes[:, brain].ravel(), (left[:, brain] ** 2).ravel()
    order = np.array_split(np.argsort(x), STEEPNESS)
    curve = np.array([[x[part].mean() for part in order], [y[part].mean() for part in order]])
    standard = np.where(brain, left / np.sqrt(np.interp(slopes, *curve)), 0)
    frequencies, power = vae.radial_spectrum(standard, brain)
    return {"texture": curve, "texture_power": power, "texture_frequency": frequencies}


def add_texture(drawn: torch.Tensor, noise: torch.Tensor, flow) -> torch.Tensor:
    """Return drawn volumes (N, X, Y, Z) with texture from white noise of that shape.

    The faint rim that a decoder draws around a brain goes, since stripped scans have none.
    """
    radius = _shells(drawn.shape[1:])
    power = np.interp(radius, flow.texture_frequency, flow.texture_power)
    shaped = torch.as_tensor(np.sqrt(power / power.mean()), dtype=torch.float32)
    variance = np.interp(_edges(drawn.numpy()), *flow.texture.numpy())
    spread = torch.as_tensor(np.sqrt(variance), dtype=torch.float32)
    textured = drawn + spread * colour(noise, shaped)
    return torch.where(drawn < HALO, 0, textured)
