"""The blood cells that come with the package are those of the source."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from embergraph.data import validate
from embergraph.datasets import pbmc
from embergraph.matrix_checks import check_matrix

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return pbmc()


def test_shapes_names_and_values(data):
    assert validate(data) is data
    check_matrix("expression", data["expression"])
    counts = data["expression"].values
    assert counts.shape == (700, 765)
    assert counts.dtype == np.int64
    assert (counts.min(), counts.max()) == (0, 259)
    assert data["gene"].values[0] == "HES4"
    assert data["cell"].values[0] == "AAAGCCTGGCTAAC-1"
    assert (counts.sum(1) <= data["total_counts"]).all()
    assert set(data["phase"].values) == {"G1", "S", "G2M"}
    assert 0 <= data["mitochondrial_fraction"].min() <= data["mitochondrial_fraction"].max() < 0.2


def test_labels_agree_with_marker_genes(data):
    labels, sizes = np.unique(data["label"], return_counts=True)
    assert len(labels) == 10
    assert dict(zip(labels.tolist(), sizes.tolist(), strict=True))["Dendritic"] == 240
    share = data["expression"] / data["total_counts"]
    for gene, label in {"CD79A": "CD19+ B", "NKG7": "CD56+ NK", "S100A8": "CD14+ Monocyte"}.items():
        means = share.sel(gene=gene).groupby(data["label"]).mean()
        assert means.idxmax("label").item() == label


@pytest.mark.skipif(not SHARED.is_dir(), reason="the source is not in the package")
def test_values_of_the_source(data):
    source = np.load(SHARED / "expression" / "pbmc68k_reduced_counts.npz", allow_pickle=False)
    np.testing.assert_array_equal(data["expression"], source["counts"])
    np.testing.assert_array_equal(data["label"], source["label"])
    np.testing.assert_array_equal(data["total_counts"], source["total_counts"])
    np.testing.assert_array_equal(data["phase"], source["phase"])
    np.testing.assert_array_equal(data["gene"], source["genes"])


def test_saved_and_reloaded(data, tmp_path):
    data.to_netcdf(tmp_path / "pbmc.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "pbmc.nc", engine="h5netcdf") as stored:
        xr.testing.assert_identical(stored.load(), data)
