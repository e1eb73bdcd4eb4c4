"""Simulated matrices have the stated precision, scales and graphs."""

import networkx as nx
import numpy as np
import pytest
import xarray as xr

from embergraph.datasets import simulated_matrix
from embergraph.matrices import quotient
from embergraph.models.parts.errors import DataError

KINDS = ["tree", "barabasi_albert", "erdos_renyi", "ring", "blocks"]


def graph_of(data: xr.Dataset, axis: str = "cell") -> nx.Graph:
    precision = data[f"true_{axis}_precision"].values
    return nx.from_numpy_array((precision != 0) & ~np.eye(len(precision), dtype=bool))


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_is_the_inverse_of_the_kronecker_sum(kind: str) -> None:
    count = 20_000
    data = simulated_matrix(6, 4, num_replicates=count, graph=kind, seed=1)
    omega = np.kron(data["true_cell_precision"], np.eye(4)) + np.kron(np.eye(6), data["true_gene_precision"])
    draws = data["true_expression"].values.reshape(count, 24)
    covariance = np.linalg.inv(omega)
    variances = np.diag(covariance)
    error = np.sqrt((covariance**2 + np.outer(variances, variances)) / count)
    assert np.abs((draws.T @ draws / count - covariance) / error).max() < 5
    wrong = np.linalg.inv(np.kron(data["true_cell_precision"], data["true_gene_precision"]))
    assert np.abs((draws.T @ draws / count - wrong) / error).max() > 20


@pytest.mark.parametrize("law", ["chi2", "lognormal"])
def test_scales_multiply_and_sum_to_zero(law: str) -> None:
    data = simulated_matrix(30, 20, num_replicates=3, noise_law=law)
    u, v = data["true_log_u"], data["true_log_v"]
    assert (u.dims, v.dims) == (("replicate", "cell"), ("replicate", "gene"))
    np.testing.assert_allclose(u.sum("cell"), 0, atol=1e-12)
    np.testing.assert_allclose(v.sum("gene"), 0, atol=1e-12)
    np.testing.assert_allclose(
        data["expression"], np.exp(u + v).transpose(*data["expression"].dims) * data["true_expression"]
    )
    spread = simulated_matrix(100, 2, num_replicates=60, noise_law=law, noise=0.5)["true_log_u"].std()
    assert abs(float(spread) - 0.5 * (2.221 if law == "chi2" else 1)) < 0.06


def test_noise_changes_the_scales_only() -> None:
    clean, weak, strong, other_law = (
        simulated_matrix(20, 30, **setting)
        for setting in ({"noise": 0.0}, {"noise": 0.5}, {"noise": 1.0}, {"noise_law": "lognormal"})
    )
    np.testing.assert_array_equal(clean["expression"], clean["true_expression"])
    for data in (weak, strong, other_law):
        for name in ("true_expression", "true_cell_precision", "true_gene_precision"):
            np.testing.assert_array_equal(data[name], clean[name])
        np.testing.assert_allclose(quotient(data["expression"]), quotient(clean["expression"]), rtol=1e-10)
    np.testing.assert_allclose(2 * weak["true_log_u"], strong["true_log_u"])


def test_signs_and_density_leave_the_rest_alone() -> None:
    random, positive = simulated_matrix(40, 50), simulated_matrix(40, 50, signs="positive")
    off = random["true_cell_precision"].values - np.eye(40)
    np.testing.assert_array_equal(np.abs(off), positive["true_cell_precision"].values - np.eye(40))
    assert 0.2 < (off[off != 0] < 0).mean() < 0.8
    thinned = simulated_matrix(40, 50, density=0.6)
    kept = thinned["expression"].values != 0
    assert abs(kept.mean() - 0.6) < 4 * np.sqrt(0.24 / kept.size)
    np.testing.assert_array_equal(thinned["expression"].values[kept], random["expression"].values[kept])
    assert (thinned["true_expression"].values[~kept] == 0).all()


def test_kinds_of_graphs() -> None:
    assert nx.is_tree(graph_of(simulated_matrix(60, 40)))
    assert graph_of(simulated_matrix(60, 40, graph="barabasi_albert", attachments=3), "gene").size() == 3 * (40 - 3)
    degrees = [
        np.mean([d for _, d in graph_of(simulated_matrix(100, 50, graph="erdos_renyi", seed=s)).degree])
        for s in range(10)
    ]
    assert abs(np.mean(degrees) - 2.5) < 4 * np.sqrt(2 * 2.5 / 100 / 10)
    ring = graph_of(simulated_matrix(12, 9, graph="ring", num_neighbours=2), "gene")
    assert set(ring[0]) == {1, 2, 7, 8}
    assert [len(c) for c in nx.connected_components(graph_of(simulated_matrix(12, 9, graph="blocks")))] == [5, 5, 2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.6, 0.98])
def test_eigenvalues_stay_within_the_strength(kind: str, strength: float) -> None:
    data = simulated_matrix(31, 40, graph=kind, strength=strength)
    for axis in ("cell", "gene"):
        precision = data[f"true_{axis}_precision"].values
        values = np.linalg.eigvalsh(precision)
        assert 1 - strength - 1e-12 <= values[0] <= values[-1] <= 1 + strength + 1e-12
        np.testing.assert_array_equal(precision, precision.T)
        degrees = dict(graph_of(data, axis).degree)
        a, b = next(iter(graph_of(data, axis).edges))
        assert abs(precision[a, b]) == pytest.approx(strength / np.sqrt(degrees[a] * degrees[b]))


def test_seed_names_and_shared_scales(tmp_path) -> None:
    first = simulated_matrix(20, 30, num_replicates=2, shared_scales=True, seed=5)
    xr.testing.assert_identical(first, simulated_matrix(20, 30, num_replicates=2, shared_scales=True, seed=5))
    assert not np.allclose(first["expression"], simulated_matrix(20, 30, num_replicates=2, seed=6)["expression"])
    assert first["true_log_u"].dims == ("cell",)
    assert first["cell_other"].values.tolist() == first["cell"].values.tolist() == [f"cell_{i}" for i in range(20)]
    one = simulated_matrix(20, 30)
    assert one["expression"].dims == ("cell", "gene")
    assert "replicate" not in one.sizes
    first.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    assert xr.load_dataset(tmp_path / "data.nc", engine="h5netcdf")["expression"].equals(first["expression"])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_cells", 1),
        ("num_genes", 1),
        ("num_replicates", 0),
        ("graph", "star"),
        ("signs", "negative"),
        ("noise_law", "normal"),
        ("strength", 1.0),
        ("strength", 0.0),
        ("noise", -0.1),
        ("noise", np.nan),
        ("density", 0.0),
        ("mean_degree", -1.0),
        ("num_neighbours", 0),
        ("clique_size", 0),
    ],
)
def test_refuses_settings_out_of_range(setting: str, value: float | str) -> None:
    with pytest.raises(DataError, match=setting):
        simulated_matrix(**{setting: value})
    with pytest.raises(DataError, match="attachments"):
        simulated_matrix(5, 6, graph="barabasi_albert", attachments=5)
