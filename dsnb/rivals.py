"""The plain rivals: registration to a euploid template (TBM) and the region volumes it gives.

Sign: a log-Jacobian is the log local volume of the PERSON relative to the template, on the
template's grid; positive means that the person has more tissue there.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from joblib import Parallel, delayed
from scipy import ndimage

from dsnb import bids, dataset, record
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.space import REGIONS, Grid, region_masks

CODE = ("space", "rivals")
FIELD_SIGMA = 1.0  # voxels: demons smoothing of the displacement (its elastic prior)
UPDATE_SIGMA = 1.5  # voxels: smoothing of each update (its fluid prior)
DETERMINANTS = (0.05, 20.0)  # clip before the logarithm: folding is not a volume
HALO = 0.1  # intensity below which a drawn voxel is background, which stripped scans have at zero
BLOCK = 32  # volumes between two flushes to disk, what a killed run loses at most


def warp(values: np.ndarray, field_mm: np.ndarray, voxel_mm: float, order: int = 1) -> np.ndarray:
    """Return values (X, Y, Z) read at x + field(x), with the field (3, X, Y, Z) in mm."""
    voxels = np.indices(values.shape, dtype=np.float32) + field_mm / np.float32(voxel_mm)
    return ndimage.map_coordinates(values, voxels, order=order, mode="nearest")


def invert_field(field_mm: np.ndarray, voxel_mm: float, rounds: int = 8) -> np.ndarray:
    """Return the inverse displacement (3, X, Y, Z) in mm by the fixed point v(y) = -u(y + v(y))."""
    inverse = -field_mm
    for _ in range(rounds):
        inverse = -np.stack([warp(part, inverse, voxel_mm) for part in field_mm])
    return inverse


def log_determinant(field_mm: np.ndarray, voxel_mm: float) -> np.ndarray:
    """Return log det(I + grad u), (X, Y, Z), of a displacement field (3, X, Y, Z) in mm."""
    slopes = [np.gradient(part, voxel_mm) for part in field_mm]
    (a, b, c), (d, e, f), (g, h, i) = slopes
    a, e, i = a + 1, e + 1, i + 1
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return np.log(np.clip(determinant, *DETERMINANTS)).astype(np.float32)


def _image(volume: np.ndarray, voxel_mm: float) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T, dtype=np.float32))
    image.SetSpacing((voxel_mm,) * 3)
    return image


def _halved(image: sitk.Image) -> sitk.Image:
    smooth = sitk.SmoothingRecursiveGaussian(image, image.GetSpacing()[0])
    return sitk.Shrink(smooth, [2] * 3)


def _demons(fixed: sitk.Image, moving: sitk.Image, iterations: int, start: sitk.Image | None):
    """Run fast symmetric-forces demons (Vercauteren et al. 2009) at one level."""
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(iterations)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(FIELD_SIGMA)
    demons.SetSmoothUpdateField(True)
    demons.SetUpdateFieldStandardDeviations(UPDATE_SIGMA)
    if start is None:
        return demons.Execute(fixed, moving)
    kind = sitk.sitkVectorFloat64
    return demons.Execute(
        fixed, moving, sitk.Resample(start, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, kind)
    )


def register_volume(volume: np.ndarray, template: np.ndarray, study: Study) -> np.ndarray:
    """Return the template-to-person displacement (3, X, Y, Z) in mm on the template's grid.

    Only the template's bounding box is registered, on one thread; it is zero elsewhere.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    voxel_mm = study.grid.voxel_mm
    inside = ndimage.binary_dilation(template > 0.05, iterations=3)
    box = ndimage.find_objects(inside.astype(np.int8))[0]
    fixed, moving = (_image(values[box], voxel_mm) for values in (template, volume))
    moving = sitk.HistogramMatching(moving, fixed, 64, 8)
    coarse = _demons(_halved(fixed), _halved(moving), study.maps.demons_iterations, None)
    field = _demons(fixed, moving, max(study.maps.demons_iterations // 3, 1), coarse)
    whole = np.zeros((3, *template.shape), np.float32)
    whole[(slice(None), *box)] = sitk.GetArrayFromImage(field).T
    return whole


def _block(volumes: np.ndarray, template: np.ndarray, study: Study, processes: int) -> list:
    """Return the displacement of every volume of a block, on several processes."""
    jobs = (delayed(register_volume)(np.asarray(v, np.float32), template, study) for v in volumes)
    return Parallel(n_jobs=min(processes, len(volumes)))(jobs)


def register_volumes(
    volumes: np.ndarray, template: np.ndarray, study: Study, fields: bool = False
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Return log-Jacobians (N, X, Y, Z) of volumes against the template, and fields if asked.

    The log-Jacobian is positive where the person is larger than the template; the fields are
    float16 (N, 3, X, Y, Z) in mm.
    """
    log_jacobian = np.zeros(volumes.shape, np.float32)
    displacement = np.zeros((len(volumes) * fields, 3, *volumes.shape[1:]), np.float16)
    for start in range(0, len(volumes), BLOCK):
        found = _block(volumes[start : start + BLOCK], template, study, study.maps.processes)
        for row, field in enumerate(found, start):
            log_jacobian[row] = log_determinant(field, study.grid.voxel_mm)
            if fields:
                displacement[row] = field
        record.progress("register", start + len(found), len(volumes))
    return (log_jacobian, displacement) if fields else log_jacobian


def without_halo(drawn: np.ndarray) -> np.ndarray:
    """Return drawn volumes (N, X, Y, Z) with their faint rim set to zero, as in stripped scans.

    A network draws some 0.05 around a brain; histogram matching makes tissue of it, and regions
    8 % larger by this ruler, 13 to 18 % at the surface.
    """
    return np.where(drawn < HALO, 0, drawn)


def fit_template(volumes: np.ndarray, study: Study) -> np.ndarray:
    """Return the sharpened mean (X, Y, Z) of volumes: registered, averaged, and un-biased.

    After each round the mean displacement is taken out, so that the template keeps the mean shape.
    """
    template = np.mean(volumes, axis=0, dtype=np.float64).astype(np.float32)
    some = np.asarray(volumes[: study.maps.template_people], np.float32)
    voxel_mm = study.grid.voxel_mm
    for _ in range(study.maps.template_rounds):
        fields = _block(some, template, study, study.maps.processes)
        centre = invert_field(np.mean(fields, axis=0), voxel_mm)
        template = np.zeros_like(template)
        for volume, field in zip(some, fields):
            whole = centre + np.stack([warp(part, centre, voxel_mm) for part in field])
            template += warp(volume, whole, voxel_mm, order=3) / np.float32(len(some))
    return template


def region_volumes(log_jacobian: np.ndarray, grid: Grid) -> np.ndarray:
    """Return estimated region volumes (N, R) in ml: template masks times local volume."""
    inside = region_masks(grid).reshape(len(REGIONS), -1)
    used = np.flatnonzero(inside.max(0) > 0)
    masks = inside[:, used].T * grid.voxel_ml
    flat = log_jacobian.reshape(len(log_jacobian), -1)
    return np.stack([np.exp(row[used].astype(np.float32)) @ masks for row in flat])


def _register_rows(folder: Path, volumes: np.ndarray, rows: np.ndarray, template, study) -> None:
    """Fill `log_jacobian.npy` by blocks; `registered.npy` tells a second run where to go on."""
    paths = folder / "log_jacobian.npy", folder / "registered.npy"
    begun = paths[1].is_file()
    shapes = (volumes.shape, np.float16), ((len(volumes),), bool)
    maps, done = (
        np.lib.format.open_memmap(path, "r+" if begun else "w+", kind, shape)
        for path, (shape, kind) in zip(paths, shapes)
    )
    left = rows[~done[rows]]
    for start in range(0, len(left), BLOCK):
        part = left[start : start + BLOCK]
        for row, field in zip(part, _block(volumes[part], template, study, study.maps.processes)):
            maps[row] = log_determinant(field, study.grid.voxel_mm)
        maps.flush()
        done[part] = True
        done.flush()
        record.progress("register", int(done.sum()), len(rows))


def make_template(root: Path, study: Study) -> None:
    """Make `template`: the mean of registered euploid fit volumes, in their mean shape.

    Raises BadInput when no euploid is there to make a template of.
    """
    settings = {
        "voxel_mm": study.grid.voxel_mm, "demons_iterations": study.maps.demons_iterations,
        "rounds": study.maps.template_rounds, "people": study.maps.template_people,
    }  # fmt: skip
    product = record.begin(root, "template", "register", settings, ("prepared",), CODE)
    if product.done:
        return
    fit = dataset.select(dataset.load_table(root), "euploid", "fit")
    if not len(fit):
        fix = "give a cohort with euploid people"
        raise BadInput("E-SPLIT", "prepared", "euploid fit", 0, "at least 1 person", fix)
    bids.save_volume(
        product.folder / "template.nii.gz",
        fit_template(dataset.load_volumes(root)[fit], study), study.grid,
        {"Description": "Mean of registered euploid fit volumes", "Sources": "prepared"},
    )  # fmt: skip
    product.finish()


def load_template(root: Path) -> np.ndarray:
    """Return the euploid template (X, Y, Z), intensity 0 to 1.5."""
    record.require(root, "template")
    return bids.load_volume(root / "template" / "template.nii.gz")[0]


def register(root: Path, study: Study) -> None:
    """Make `deformation`: log-Jacobians and estimated region volumes of all but the twins."""
    make_template(root, study)
    settings = {"demons_iterations": study.maps.demons_iterations}
    product = record.begin(
        root, "deformation", "register", settings, ("prepared", "template"), CODE
    )
    if product.done:
        return
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    registered = (table["kind"] != "twin").to_numpy()
    rows = np.flatnonzero(registered)
    _register_rows(product.folder, volumes, rows, load_template(root), study)
    log_jacobian = np.load(product.folder / "log_jacobian.npy", mmap_mode="r")
    estimated = pd.DataFrame(region_volumes(log_jacobian[rows], study.grid), columns=list(REGIONS))
    estimated.insert(0, "participant_id", table["participant_id"].to_numpy()[rows])
    bids.write_table(product.folder / "volumes.tsv", estimated.round(5))
    bids.write_table(product.folder / "participants.tsv", table.assign(registered=registered))
    product.finish()


def load_deformation(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the template (X, Y, Z) and the log-Jacobians (N, X, Y, Z) as a memory map."""
    record.require(root, "deformation")
    path = root / "deformation" / "log_jacobian.npy"
    return load_template(root), np.load(path, mmap_mode="r", allow_pickle=False)
