"""The Sachs data: the facts that are known about them hold in what is loaded."""

import networkx as nx
import numpy as np
import pytest
import xarray as xr

from embergraph.data import split, standardize, validate
from embergraph.datasets import sachs

BLOCKS = [853, 902, 911, 723, 810, 799, 848, 913, 707]
PROTEINS = ["Raf", "Mek", "Plcg", "PIP2", "PIP3", "Erk", "Akt", "PKA", "PKC", "P38", "Jnk"]


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return sachs()


def test_values_and_names(data):
    assert data["gene"].values.tolist() == PROTEINS
    assert data["antibody"].sel(gene=["Raf", "Erk", "Akt", "Jnk"]).values.tolist() == [
        "praf",
        "p44/42",
        "pakts473",
        "pjnk",
    ]
    assert data["expression"].shape == (7466, 11)
    first = [26.4, 13.2, 8.82, 18.3, 58.8, 6.61, 17.0, 414.0, 17.0, 44.9, 40.0]
    np.testing.assert_array_equal(data["expression"][0], np.log(first))
    intensities = sachs(log=False)
    np.testing.assert_array_equal(intensities["expression"][0], first)
    np.testing.assert_array_equal(np.log(intensities["expression"]), data["expression"])
    assert intensities["expression"].values.min() == 1
    assert validate(data) is data


def test_conditions(data):
    assert np.bincount(data["environment"]).tolist() == BLOCKS
    assert (np.diff(data["environment"]) >= 0).all()
    conditions = ["cd3_cd28", "icam2", "aktinhib", "g0076", "psitect", "u0126", "ly", "pma", "b2camp"]
    assert data["condition"].values.tolist() == conditions
    assert data["covariate"].values.tolist() == conditions
    np.testing.assert_array_equal(data["covariates"], np.eye(9)[data["environment"].values])
    assert data["regime_target"].values.tolist() == ["", "", "Akt", "PKC", "PIP2", "Mek", "PIP3", "PKC", "PKA"]
    assert data["regime_kind"].values.tolist() == ["observational"] * 2 + ["inhibitor"] * 5 + ["activator"] * 2
    assert data["cell"].values[[0, 853, -1]].tolist() == ["cd3_cd28_0", "icam2_0", "b2camp_706"]


def best_split(values: np.ndarray) -> int:
    """Row at which two Gaussians, each with its own mean and variance per protein, fit best."""
    n = np.arange(1, len(values))[:, None]
    sums, squares = np.cumsum(values, axis=0), np.cumsum(values**2, axis=0)
    left = squares[:-1] / n - (sums[:-1] / n) ** 2
    m = len(values) - n
    right = (squares[-1] - squares[:-1]) / m - ((sums[-1] - sums[:-1]) / m) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = (n * np.log(left) + m * np.log(right)).sum(axis=1)
    inside = slice(50, -50)  # variances of a few cells say nothing
    return 51 + int(np.argmin(cost[inside]))


def test_blocks_are_in_the_data(data):
    """The boundaries are found from the numbers alone: the best split of two neighbouring blocks is where they meet."""
    starts = np.concatenate([[0], np.cumsum(BLOCKS)])
    values = data["expression"].values
    off = [
        abs(starts[i] + best_split(values[starts[i] : starts[i + 2]]) - starts[i + 1]) for i in range(len(BLOCKS) - 1)
    ]
    assert sum(distance <= 10 for distance in off) >= 7, off


def test_reference_graph_has_the_known_edges_and_the_cycle(data):
    graph = data["reference_graph"]
    assert graph.dims == ("regulator", "target")
    assert graph.values.sum() == 18
    assert graph.sel(regulator="PKA").values.nonzero()[0].tolist() == [0, 1, 5, 6, 9, 10]
    assert bool(graph.sel(regulator="Raf", target="Mek"))
    assert not bool(graph.sel(regulator="Mek", target="Raf"))
    edges = [(PROTEINS[a], PROTEINS[b]) for a, b in np.argwhere(graph.values)]
    cycles = [set(cycle) for cycle in nx.simple_cycles(nx.DiGraph(edges))]
    assert cycles == [{"PIP3", "Plcg", "PIP2"}]
    assert "PIP3 -> Plcg -> PIP2 -> PIP3" in graph.attrs["note"]


def test_every_fourth_cell_of_each_condition(data):
    train, test = split(data, within="environment")
    assert np.bincount(test["environment"]).tolist() == [-(-size // 4) for size in BLOCKS]
    assert np.bincount(train["environment"]).tolist() == [size - -(-size // 4) for size in BLOCKS]
    assert all(int(str(name).rsplit("_", 1)[1]) % 4 == 0 for name in test["cell"].values)


def test_saved_and_reloaded(data, tmp_path):
    done, _ = standardize(data)
    done.to_netcdf(tmp_path / "sachs.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "sachs.nc", engine="h5netcdf") as stored:
        xr.testing.assert_identical(stored.load(), done)
