"""The planted condition changes volumes as asked, and nothing else; a sham changes none of them."""

import numpy as np
import pytest
from scipy import ndimage, stats

from dsnb import bids, phantom, space
from dsnb.phantom import fields
from dsnb.volumes.scan import normalise, place

GRID = space.GRIDS["small"]
MASKS = space.region_masks(GRID)
PEOPLE = 12
NAMED = (
    "cerebellum", "brainstem", "hippocampus", "amygdala", "parahippocampal", "frontal",
    "superior_temporal", "parietal", "occipital", "lentiform", "thalamus", "ventricles",
    "corpus_callosum",
)  # fmt: skip
OPENED = ndimage.binary_dilation(MASKS[space.REGIONS.index("ventricles")] > 0.1, iterations=2)
BRIGHTEST_FLUID = 0.45  # white matter is 0.85, grey matter 0.55


def changes(displacement: np.ndarray) -> np.ndarray:
    """Return the log-volume change (R,) of the template's label maps, moved by a displacement."""
    voxels = np.indices(GRID.shape) + displacement / GRID.voxel_mm
    moved = [ndimage.map_coordinates(mask, voxels, order=1).sum() for mask in MASKS]
    return np.log(moved / MASKS.sum((1, 2, 3)))


def factor(seed: int) -> float:
    """Return the personal factor that a seed draws."""
    return fields.draw_factor(np.random.default_rng([seed, 0]))


@pytest.mark.parametrize("severity", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_labels_change_as_asked_at_any_severity(severity):
    """Falls: the severity dial; moved label maps measure it, not the field's own Jacobian."""
    displacement, truth = phantom.disease_displacement(GRID, severity, seed=4)
    wanted = np.expm1(fields.targets(0.0, severity * factor(4)))
    gaps = dict(zip(space.REGIONS, 100 * np.abs(np.expm1(changes(displacement)) - wanted)))
    assert max(gaps[name] for name in NAMED) < 2 * max(severity, 1), gaps
    assert np.isfinite(truth).all() and np.abs(truth).max() < 4, "a voxel folds"
    if severity == 0:
        assert np.abs(displacement).max() == 0


def test_shams_change_no_region_systematically():
    """Falls: that a method which flags shams sees warping, and not a region that always shrinks."""
    drawn = [changes(phantom.sham_displacement(GRID, 1.0, seed)[0]) for seed in range(24)]
    t = stats.ttest_1samp(drawn, 0.0).statistic
    assert np.abs(t).max() < stats.t.ppf(1 - 0.01 / (2 * len(t)), len(drawn) - 1)
    assert np.abs(drawn).max(0).min() > 0.005, "a sham that changes nothing is no sham"


@pytest.fixture(scope="module")
def planted(real_scans):
    """Prepare some real scans three ways: as they are, with the condition, and as its sham."""
    stacks = {"own": [], "planted": [], "sham": []}
    for seed, path in enumerate(sorted(real_scans.glob("sub-*/anat/*_T1w.nii.gz"))[:PEOPLE]):
        volume, affine = bids.load_volume(path)
        drawn = {
            "own": None,
            "planted": phantom.disease_displacement(GRID, 1.0, seed)[0],
            "sham": phantom.sham_displacement(GRID, 1.0, seed)[0],
        }
        for kind, displacement in drawn.items():
            placed = place(volume, affine, GRID, displacement, path.name)
            placed = placed[0] if isinstance(placed, tuple) else placed
            stacks[kind].append(normalise(placed, GRID, path.name)[0])
    return {kind: np.stack(volumes) for kind, volumes in stacks.items()}


@pytest.mark.real
def test_real_ventricles_grow(planted):
    """Falls: that real fluid, found by its brightness alone, grows with the planted condition.

    By less than the template's label maps do (about two thirds): the field grows what lies where
    the template has ventricles, and nobody's lie just there.
    """
    fluid = {
        kind: ((volumes < BRIGHTEST_FLUID) & OPENED).sum((1, 2, 3))
        for kind, volumes in planted.items()
    }
    k = space.REGIONS.index("ventricles")
    wanted = [np.expm1(fields.targets(0.0, factor(seed))[k]) for seed in range(PEOPLE)]
    grown = fluid["planted"] / fluid["own"] - 1
    assert 0.5 * np.mean(wanted) < np.mean(grown) < 1.1 * np.mean(wanted)
    assert (grown > 0).all()
    moved = np.log(fluid["sham"] / fluid["own"])
    assert abs(moved.mean()) < 2.5 * stats.sem(moved) + 0.01


@pytest.mark.real
def test_real_texture_and_noise_stay(planted):
    """Falls: that planting leaves a trace of its own, where it moves nothing: blur, noise, gain."""
    brain = space.load_template(GRID).brain
    for kind in ("planted", "sham"):
        draw = phantom.disease_displacement if kind == "planted" else phantom.sham_displacement
        ratios, gains = [], []
        for seed, (own, changed) in enumerate(zip(planted["own"], planted[kind])):
            displacement, truth = draw(GRID, 1.0, seed)
            still = brain & (np.abs(truth) < 0.05) & (np.abs(displacement).max(0) < 0.4)
            grain = [v - ndimage.gaussian_filter(v, 1.0) for v in (own, changed)]
            ratios.append(grain[1][still].std() / grain[0][still].std())
            gains.append(changed[still].mean() / own[still].mean())
            assert still.sum() > 200
        assert abs(np.mean(ratios) - 1) < 0.03, kind
        assert abs(np.mean(gains) - 1) < 0.01, kind


@pytest.mark.real
def test_planted_and_sham_are_equally_sharp(planted):
    """Falls: that blur tells planted from sham, since both were resampled once like everybody."""
    white = ndimage.binary_erosion(space.load_template(GRID).wm > 0.9)
    sharp = {
        kind: [np.diff(volume, axis=0, prepend=0)[white].std() for volume in volumes]
        for kind, volumes in planted.items()
    }
    ratio = np.log(np.divide(sharp["planted"], sharp["sham"]))
    assert abs(ratio.mean()) < 2.5 * stats.sem(ratio) + 0.01
