"""Later stages read the rows they ask for, and never somebody else's."""

import numpy as np
import pandas as pd
import pytest

from dsnb import bids, dataset, record
from dsnb.checks import BadInput

PEOPLE = pd.DataFrame(
    [
        ("sub-1", "euploid", "recorded", "fit", 30.0),
        ("sub-2", "euploid", "recorded", "test", 31.0),
        ("sub-3", "DS", "recorded", "test", 40.5),
        ("sub-3twin", "euploid", "twin", "truth", 40.5),
        ("sub-2sham", "euploid", "sham", "sham", 31.0),
        ("sub-2planted", "DS", "planted", "test", 31.0),
    ],
    columns=["participant_id", "group", "kind", "split", "age"],
)


def test_select_takes_group_split_and_kind():
    """Twins and shams come only when asked for by kind; splits of the other group never."""
    assert dataset.select(PEOPLE, "euploid", "fit", "test").tolist() == [0, 1]
    assert dataset.select(PEOPLE, "euploid").tolist() == [0, 1]
    assert dataset.select(PEOPLE, "DS", "test").tolist() == [2, 5]
    assert dataset.select(PEOPLE, "DS", "test", kind="recorded").tolist() == [2]
    assert dataset.select(PEOPLE, "euploid", "truth", kind="twin").tolist() == [3]
    assert dataset.select(PEOPLE, "euploid", "sham", kind="sham").tolist() == [4]


@pytest.mark.parametrize("asked", [("euploids", "fit"), ("euploid", "train")])
def test_select_refuses_unknown_names(asked):
    """A misspelt group or split must not select nobody in silence."""
    with pytest.raises(BadInput, match="E-SPLIT"):
        dataset.select(PEOPLE, *asked)


def make_product(root) -> np.ndarray:
    """Write a small finished product `prepared`; return its volumes."""
    product = record.begin(root, "prepared", "prepare", {}, (), ("space",))
    volumes = np.arange(6 * 8, dtype=np.float16).reshape(6, 2, 2, 2)
    np.save(product.folder / "volumes.npy", volumes)
    np.save(product.folder / "truth.npy", volumes[:1])
    bids.write_table(product.folder / "participants.tsv", PEOPLE)
    truth = pd.DataFrame({"participant_id": ["sub-3"], "cerebellum_before": [140.25]})
    bids.write_table(product.folder / "truth.tsv", truth)
    product.finish()
    return volumes


def test_products_are_read_typed_and_read_only(tmp_path):
    """Ages are numbers, ids are text, row i is volume i, and nobody can write into the data."""
    volumes = make_product(tmp_path)
    table, mapped = dataset.load_table(tmp_path), dataset.load_volumes(tmp_path)
    assert table["age"].dtype == float and table["participant_id"].tolist()[0] == "sub-1"
    assert np.array_equal(mapped, volumes) and isinstance(mapped, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    truth, maps = dataset.load_truth(tmp_path)
    assert truth["cerebellum_before"].tolist() == [140.25] and maps.shape == (1, 2, 2, 2)


def test_damaged_product_is_refused(tmp_path):
    """A table edited by hand is not read as if it were ours."""
    make_product(tmp_path)
    path = tmp_path / "prepared" / "participants.tsv"
    path.write_text(path.read_text().replace("sham\tsham", "recorded\tfit"))
    with pytest.raises(BadInput, match="E-DAMAGED"):
        dataset.load_table(tmp_path)
