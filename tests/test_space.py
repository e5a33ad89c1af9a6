"""Grids, regions and covariates: where a voxel lies must never be in doubt."""

import nibabel as nib
import numpy as np
import pandas as pd

from dsnb import space


def test_every_grid_shares_one_centre():
    """Presets differ by sampling only: else a map at 3 mm would not lie on one at 1 mm."""
    for grid in space.GRIDS.values():
        middle = (np.array(grid.shape) - 1) / 2
        assert np.allclose(nib.affines.apply_affine(grid.affine, middle), space.CENTRE_MM)
        assert nib.aff2axcodes(grid.affine) == ("R", "A", "S")


def test_a_point_is_resampled_to_its_place():
    """A bright spot at known millimetres stays there: else every truth map is off."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-98, -134, -72)
    values = np.zeros((197, 233, 189), np.float32)
    spot = np.array((24.0, -18.0, 12.0))
    values[tuple((spot - affine[:3, 3]).astype(int))] = 1
    grid = space.GRIDS["small"]
    resampled = space.onto_grid(values, affine, grid)
    found = nib.affines.apply_affine(grid.affine, np.unravel_index(resampled.argmax(), grid.shape))
    assert np.abs(found - spot).max() <= grid.voxel_mm / 2


def test_region_volumes_do_not_depend_on_the_grid():
    """Soft volumes agree between 3 and 4 mm: else effects could not be compared over presets."""
    small, smoke = space.GRIDS["small"], space.GRIDS["smoke"]
    volumes = [space.region_masks(g).sum((1, 2, 3)) * g.voxel_ml for g in (small, smoke)]
    assert np.allclose(volumes[0], volumes[1], rtol=0.02)


def test_regions_lie_on_both_sides_where_anatomy_says():
    """Hippocampi are medial temporal, the cerebellum low and behind: else names lie."""
    grid = space.GRIDS["small"]
    x, y, z = grid.coordinates_mm()
    masks = dict(zip(space.REGIONS, space.region_masks(grid)))

    def centre(name, side):
        weights = masks[name] * (side * x > 0)
        return [np.average(axis, weights=weights) for axis in (x, y, z)]

    left, right = centre("hippocampus", -1), centre("hippocampus", 1)
    assert abs(left[0] + right[0]) < 2 and 18 < right[0] < 34 and right[2] < 0
    cerebellum, frontal = centre("cerebellum", 1), centre("frontal", 1)
    assert cerebellum[1] < -45 and cerebellum[2] < -20 and frontal[1] > 0


def test_covariates_are_coded_in_one_way():
    """Age is in decades from 40 and sex is +-0.5: a model fitted elsewhere depends on it."""
    table = pd.DataFrame({"age": [40.0, 60.0], "sex": ["F", "M"]})
    assert np.allclose(space.covariates(table), [[0, 0.5], [2, -0.5]])
