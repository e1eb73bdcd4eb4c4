"""Baselines for matrices: invariances, closed forms, planted edges, and input that cannot be used."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

from embergraph import baselines
from embergraph.baselines import (
    GmGM,
    IndependentCells,
    IndependentGenes,
    RowColumnScaling,
    SingleAxis,
    Skeptic,
    StrongProduct,
)
from embergraph.models.parts.errors import DataError, NumericalError
from embergraph.models.parts.kronecker_sum import KroneckerSumNormal

N, P = 12, 15
INVARIANT = [RowColumnScaling(), GmGM(invariant=True), StrongProduct(), IndependentCells(), IndependentGenes()]
SCALE_DEPENDENT = [SingleAxis(), GmGM(), Skeptic()]
ALL = pytest.mark.parametrize("baseline", INVARIANT + SCALE_DEPENDENT, ids=repr)


def planted(m, seed=0, *, noise=1.0, weight=0.9, n=N, p=P):
    """Matrices with one edge on each axis, (1, 4) and (2, 7), under scales of every row and column of each."""
    rng = np.random.default_rng(seed)
    factors = [np.eye(n), np.eye(p)]
    for factor, (i, j) in zip(factors, ((1, 4), (2, 7)), strict=True):
        factor[i, j] = factor[j, i] = weight
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        values = KroneckerSumNormal(*(torch.from_numpy(factor) for factor in factors)).sample((m,)).numpy()
    values *= np.exp(noise * rng.standard_normal((m, n, 1)) + noise * rng.standard_normal((m, 1, p)))
    return dataset(values)


def dataset(values):
    values = np.asarray(values)
    dims = ("replicate", "cell", "gene")[-values.ndim :]
    names = {"cell": [f"c{i}" for i in range(values.shape[-2])], "gene": [f"g{j}" for j in range(values.shape[-1])]}
    return xr.Dataset({"expression": (dims, values)}, coords=names)


def with_values(data, values):
    return data.assign(expression=(data["expression"].dims, values))


def assert_same(one, other, **tolerance):
    for name in one.data_vars:
        scale = float(abs(one[name]).max())
        np.testing.assert_allclose(one[name] / scale, other[name] / scale, rtol=0, **({"atol": 1e-9} | tolerance))


@ALL
@pytest.mark.parametrize("m", [None, 3])
def test_graphs_are_named_symmetric_and_non_negative(baseline, m):
    data = planted(m or 1)
    data = data if m else data.isel(replicate=0)
    graphs = baseline.fit(data)
    for axis, size in (("cell", N), ("gene", P)):
        score = graphs[f"{axis}_score"]
        assert score.dims == (axis, f"{axis}_other")
        assert score.shape == (size, size)
        np.testing.assert_array_equal(score[axis], data[axis])
        np.testing.assert_array_equal(score[f"{axis}_other"], data[axis])
        np.testing.assert_array_equal(score, score.T)
        assert not np.diag(score).any()
        assert float(score.min()) == 0
        assert np.isfinite(score).all()
        if f"{axis}_precision" in graphs:
            precision = graphs[f"{axis}_precision"].to_numpy()
            np.testing.assert_array_equal(precision, precision.T)
            np.testing.assert_array_equal(np.abs(precision - np.diag(np.diag(precision))), score)
    assert graphs.attrs["baseline"] == repr(baseline)
    assert repr(baseline).split("(")[0] in dir(baselines)


@pytest.mark.parametrize("baseline", INVARIANT, ids=repr)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_row_and_column_scales_change_nothing(baseline, seed):
    data, rng = planted(2, seed), np.random.default_rng(seed)
    a, b = np.exp(2 * rng.standard_normal((2, N, 1))), np.exp(2 * rng.standard_normal((2, 1, P)))
    scaled = with_values(data, a * data["expression"].to_numpy() * b)
    assert_same(baseline.fit(data), baseline.fit(scaled))


@pytest.mark.parametrize("baseline", SCALE_DEPENDENT, ids=repr)
def test_others_change_with_the_scales(baseline):
    """The check above can fail: these baselines fail it."""
    data = planted(1, noise=0.0)
    scaled = data.assign(expression=data["expression"] * np.exp(np.linspace(-2, 2, N))[:, None])
    with pytest.raises(AssertionError):
        assert_same(baseline.fit(data), baseline.fit(scaled), atol=0.05)


def test_scaling_with_structural_zeros_is_invariant_too():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((N, P)) * (rng.random((N, P)) < 0.6)
    scaled = values * np.exp(rng.standard_normal((N, 1)) + rng.standard_normal(P))
    for baseline in (RowColumnScaling(zeros="structural"), GmGM(invariant=True)):
        assert_same(baseline.fit(dataset(values)), baseline.fit(dataset(scaled)), atol=1e-8)


@ALL
def test_permutations_permute_the_graphs(baseline):
    data, rng = planted(2), np.random.default_rng(0)
    rows, columns = rng.permutation(N), rng.permutation(P)
    moved = baseline.fit(data.isel(cell=rows, gene=columns))
    graphs = baseline.fit(data).isel(cell=rows, cell_other=rows, gene=columns, gene_other=columns)
    assert_same(graphs, moved)
    np.testing.assert_array_equal(graphs["cell_other"], moved["cell_other"])


@ALL
def test_transposition_swaps_the_graphs(baseline):
    swap = {IndependentCells: IndependentGenes, IndependentGenes: IndependentCells}
    data = planted(2)
    graphs = baseline.fit(data)
    other = swap.get(type(baseline), type(baseline))(**dataclasses.asdict(baseline))
    moved = other.fit(dataset(data["expression"].transpose("replicate", "gene", "cell").to_numpy()))
    for axis, new in (("cell", "gene"), ("gene", "cell")):
        np.testing.assert_allclose(graphs[f"{axis}_score"], moved[f"{new}_score"], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("baseline", [*INVARIANT, SingleAxis(), GmGM()], ids=repr)
def test_signs_of_rows_and_columns_change_nothing(baseline):
    data, rng = planted(2), np.random.default_rng(0)
    signs = rng.choice([-1, 1], (N, 1)) * rng.choice([-1, 1], P)
    flipped = with_values(data, data["expression"].to_numpy() * signs)
    for axis in ("cell", "gene"):
        one, other = (baseline.fit(d)[f"{axis}_score"] for d in (data, flipped))
        np.testing.assert_allclose(one, other, atol=1e-9 * max(1.0, float(one.max())))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("weight", [0.9, -0.9])
@ALL
def test_planted_edges_of_pooled_matrices_are_found(baseline, weight, seed):
    data = planted(30, seed, weight=weight, noise=0.0 if baseline in SCALE_DEPENDENT else 1.0)
    graphs = baseline.fit(data)
    for axis, edge in (("cell", (1, 4)), ("gene", (2, 7))):
        score = graphs[f"{axis}_score"].to_numpy()
        if not score.any():
            assert type(baseline).__name__ == f"Independent{axis.title()}s"
            continue
        assert np.unravel_index(score.argmax(), score.shape) == edge
        if f"{axis}_precision" in graphs:
            assert np.sign(graphs[f"{axis}_precision"].to_numpy()[edge]) == np.sign(weight)


def test_known_sign_keeps_positive_edges_only():
    positive, negative = (planted(30, weight=weight) for weight in (0.9, -0.9))
    assert float(RowColumnScaling(sign="positive").fit(positive)["cell_score"][1, 4]) > 0.2
    assert float(RowColumnScaling(sign="positive").fit(negative)["cell_score"][1, 4]) == 0


def test_scaling_scores_are_correlations_of_the_scaled_matrix():
    data = planted(1).isel(replicate=0)
    D = data["expression"].to_numpy()
    square = D**2
    for _ in range(3000):
        square *= P / square.sum(1, keepdims=True)
        square *= N / square.sum(0)
    Z = np.sign(D) * np.sqrt(square)
    graphs = RowColumnScaling().fit(data)
    np.testing.assert_allclose(graphs["cell_score"], np.abs(Z @ Z.T / P) * (1 - np.eye(N)), atol=1e-9)
    np.testing.assert_allclose(graphs["gene_score"], np.abs(Z.T @ Z / N) * (1 - np.eye(P)), atol=1e-9)


def test_single_axis_is_the_pseudo_inverse():
    D = planted(1, noise=0.0)["expression"].to_numpy()[0]
    D /= np.sqrt(np.mean(D**2))
    graphs = SingleAxis(1e-4).fit(dataset(7 * D))
    np.testing.assert_allclose(graphs["cell_precision"], np.linalg.pinv(D @ D.T, rcond=1e-4), rtol=1e-6, atol=1e-9)
    assert np.linalg.matrix_rank(graphs["gene_precision"]) == N


def test_gmgm_is_stationary():
    """At the optimum the block trace of the inverse of Psi_cell (+) Psi_gene equals the shrunk second moments."""
    D = planted(4)["expression"].to_numpy()
    graphs = GmGM(shrink=0.3).fit(dataset(D))
    D /= np.sqrt(np.mean(D**2))
    S = np.einsum("mij,mkj->ik", D, D) / len(D)
    S = 0.7 * S + 0.3 * np.trace(S) / N * np.eye(N)
    cell, gene = (graphs[f"{axis}_precision"].to_numpy() for axis in ("cell", "gene"))
    inverse = np.linalg.inv(np.kron(cell, np.eye(P)) + np.kron(np.eye(N), gene)).reshape(N, P, N, P)
    np.testing.assert_allclose(np.einsum("ijkj->ik", inverse), S, rtol=1e-6, atol=1e-6)


def test_skeptic_uses_the_textbook_correlation():
    rng = np.random.default_rng(0)
    count, rho = 4000, 0.6
    data = rng.multivariate_normal(np.zeros(2), [[1, rho], [rho, 1]], size=count) @ np.eye(2, 3)
    data[:, 2] = rng.standard_normal(count)
    found = baselines.matrix._skeptic_correlation(np.exp(3 * data).T)
    spearman = scipy.stats.spearmanr(data).statistic
    np.testing.assert_allclose(found, 2 * np.sin(np.pi / 6 * spearman), atol=1e-12)
    assert abs(found[0, 1] - rho) < 0.03  # the copula's correlation; Spearman's own is 0.58, Pearson's of exp far less
    transformed = planted(2, noise=0.3)
    assert_same(Skeptic().fit(transformed), Skeptic().fit(transformed.map(np.arcsinh)))


def test_skeptic_repairs_indefinite_correlations_and_constant_rows():
    bad = np.array([[1, 0.9, 0], [0.9, 1, 0.9], [0, 0.9, 1]])
    near = baselines.matrix._nearest_correlation(bad)
    assert np.linalg.eigvalsh(near)[0] > -1e-12
    np.testing.assert_allclose(np.diag(near), 1)
    values = planted(1)["expression"].to_numpy()[0]
    values[3] = 2.0
    assert np.isfinite(Skeptic().fit(dataset(values))["cell_score"]).all()
    assert not baselines.matrix._skeptic_correlation(values)[3, :3].any()


def test_strong_product_is_a_fixed_point_and_unpooled_shrinkage_is_needed():
    data = planted(3)
    graphs = StrongProduct(0.5).fit(data)
    cell, gene = (graphs[f"{axis}_precision"].to_numpy() for axis in ("cell", "gene"))
    np.testing.assert_allclose([np.trace(cell) / N, np.trace(gene) / P], 1)
    Z = baselines.matrix._scaled(data["expression"], "gaussian")
    S = np.einsum("mij,jl,mkl->ik", Z, gene, Z)
    expected = np.linalg.inv(0.5 * S + 0.5 * np.trace(S) / N * np.eye(N))
    np.testing.assert_allclose(cell, expected / np.trace(expected) * N, rtol=1e-7, atol=1e-9)
    with pytest.raises(NumericalError, match="singular"):
        IndependentCells(shrink=0.0).fit(data.isel(replicate=[0]))


def changed(values, place, new):
    values = np.array(values)
    values[place] = new
    return values


GOOD = np.random.default_rng(0).standard_normal((5, 6))
BAD = {
    "NaN": (changed(GOOD, (1, 2), np.nan), "NaN"),
    "infinite": (changed(GOOD, (1, 2), np.inf), "infinite"),
    "empty row": (changed(GOOD, 2, 0.0), "rows without non-zeros: 'cell c2'"),
    "empty column": (changed(GOOD, (slice(None), 3), 0.0), "columns without non-zeros: 'gene g3'"),
    "one row": (GOOD[:1], "wanted at least 2 each"),
    "constant": (np.ones((5, 6)), "rank one"),
    "text": (GOOD.astype(str), "dtype"),
    "parts": (np.kron(np.eye(2), np.ones((2, 3))), "connected components"),
}


@ALL
@pytest.mark.parametrize("kind", BAD)
def test_bad_matrices_are_refused(baseline, kind):
    values, message = BAD[kind]
    with pytest.raises(DataError, match=message):
        baseline.fit(dataset(values))


def test_bad_datasets_and_settings_are_refused():
    data = dataset(GOOD)
    with pytest.raises(DataError, match="wanted an xarray Dataset"):
        GmGM().fit(data["expression"])
    with pytest.raises(DataError, match="expression: found variables 'counts'"):
        GmGM().fit(data.rename(expression="counts"))
    with pytest.raises(DataError, match="found dims"):
        GmGM().fit(data.rename(gene="feature"))
    with pytest.raises(DataError, match="more than once"):
        GmGM().fit(data.assign_coords(cell=list("aabcd")))
    for make in (GmGM, Skeptic, StrongProduct, IndependentCells):
        with pytest.raises(DataError, match="shrink"):
            make(shrink=1.0)
    with pytest.raises(DataError, match="shrink: found 0"):
        StrongProduct(shrink=0)
    with pytest.raises(DataError, match="sign"):
        RowColumnScaling(sign="negative")
    with pytest.raises(DataError, match="rcond"):
        SingleAxis(rcond=0)
    with pytest.raises(DataError, match="zeros"):
        RowColumnScaling(zeros="missing").fit(data)
    with pytest.raises(NumericalError, match="shrink"):
        GmGM(shrink=0.0).fit(data)


@ALL
def test_integers_float32_axis_order_and_size_do_not_matter(baseline):
    counts = np.random.default_rng(1).poisson(3, (5, 6)) + 1
    data = dataset(counts)
    graphs = baseline.fit(data)
    assert_same(graphs, baseline.fit(dataset(counts.astype(np.float32))))
    assert_same(graphs, baseline.fit(data.transpose("gene", "cell")))
    assert_same(graphs, baseline.fit(dataset(counts * 1e150)), atol=1e-8)
    assert_same(graphs, baseline.fit(dataset(counts * 1e-150)), atol=1e-8)
    rows = np.array([1e150, 1e-150, 1, 1e10, 1])[:, None]
    assert all(np.isfinite(values).all() for values in baseline.fit(dataset(counts * rows)).data_vars.values())
