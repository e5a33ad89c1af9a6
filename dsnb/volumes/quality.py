"""How good a scan is: numbers from its own voxels, and which scans of a cohort deserve a look."""

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from scipy import ndimage

# Every quality number, and on which side of the cohort's median (odd: either) it earns a flag.
QC = {
    "empty_share": None, "wm_mode": None, "mask_dice": "low", "template_r": "low", "snr": "low",
    "asymmetry": "high", "edge_spread": "high", "cropped": "high", "mask_ml": "odd",
}  # fmt: skip
OUTLIER = 3.5  # robust SDs on the bad side that earn a flag
DEEP_MM = 6.0  # below the surface: the cut of a skull strip is an edge, too
SMOOTH_MM = 1.0  # SD, so that noise is not taken for edges
CROPPED = 0.01  # share of the brain outside of the field of view that earns a flag


def measure_edge_spread(volume: np.ndarray, affine: np.ndarray) -> float:
    """Return the share of a brain (0 to 1) over which its edges are spread: the motion score.

    exp(entropy) / voxels of the gradient magnitude (entropy after McGee et al. 2000): blur
    widens edges, ghosts add weak ones. `volume` (X, Y, Z) is stripped, in its own voxels; only
    scans of one protocol compare.
    """
    sizes = voxel_sizes(affine)
    deep = ndimage.binary_erosion(volume > 0, iterations=max(1, round(DEEP_MM / sizes.mean())))
    smooth = ndimage.gaussian_filter(volume, SMOOTH_MM / sizes)
    slopes = (part / size for part, size in zip(np.gradient(smooth), sizes))
    edges = np.sqrt(sum(part**2 for part in slopes))[deep].astype(float)
    shares = edges[edges > 0] / edges.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()) / max(edges.size, 1))


def find_outliers(table: pd.DataFrame) -> pd.DataFrame:
    """Return a `flag` a row (what is bad, else `ok`) and `doubt`, its robust SDs on the bad side.

    Native scans are compared with native ones, those that came in MNI space with their like.
    """
    judged = pd.DataFrame({"flag": "ok", "doubt": 0.0}, index=table.index)
    for _, rows in table.groupby(table["mask_ml"].notna()).groups.items():
        beyond = pd.DataFrame({name: _beyond(table.loc[rows, name], side)
                               for name, side in QC.items() if side})  # fmt: skip
        beyond["cropped"] = table.loc[rows, "cropped"] / CROPPED * OUTLIER
        for row, found in beyond.iterrows():
            bad = [f"{QC[name]} {name}" for name in found.index if found[name] > OUTLIER]
            judged.loc[row] = ", ".join(bad) or "ok", found.max()
    return judged


def _beyond(values: pd.Series, side: str) -> pd.Series:
    """Return how many robust SDs (1.48 MAD) each value lies on the bad side of the median."""
    away = values - values.median()
    away = {"low": -away, "high": away, "odd": away.abs()}[side]
    return away / max(1.4826 * away.abs().median(), 1e-6)
