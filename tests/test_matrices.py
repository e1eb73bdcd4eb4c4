"""Row and column scales of matrices: what removes them does so exactly, and bad input is named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr

from embergraph.datasets import pbmc
from embergraph.gene_choice import normalized_dispersion
from embergraph.matrices import choose_genes, published_quotient, quotient, sinkhorn_scale
from embergraph.matrix_checks import check_matrix, dense_matrix
from embergraph.models.parts.errors import DataError, NumericalError

SCRNA = Path(__file__).parents[2] / "shared" / "data" / "scrna"


def random_matrix(seed: int, density: float = 1.0, shape: tuple[int, int] = (12, 17)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * (rng.random(shape) < density)


def rescaled(matrix: np.ndarray, seed: int, decades: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    row, column = (10 ** rng.uniform(-decades, decades, size) for size in matrix.shape)
    return row[:, None] * matrix * column


def masked_means(matrix: np.ndarray) -> float:
    logs = np.log(np.abs(matrix), where=matrix != 0, out=np.zeros_like(matrix))
    return max(np.abs(logs.sum(axis)).max() for axis in (0, 1))


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_quotient_does_not_see_scales(seed: int, density: float) -> None:
    matrix = random_matrix(seed, density)
    left = quotient(matrix)
    np.testing.assert_allclose(quotient(rescaled(matrix, seed)), left, rtol=1e-12)
    np.testing.assert_array_equal(np.sign(left), np.sign(matrix))
    assert masked_means(left) < 1e-11
    assert check_matrix("again", left) is left
    np.testing.assert_allclose(quotient(left), left, rtol=1e-12)
    np.testing.assert_allclose(quotient(matrix.T), left.T, rtol=1e-12)


def test_quotient_without_zeros_centres_twice_and_loses_only_scales() -> None:
    matrix = random_matrix(0)
    n, p = matrix.shape
    centre_n, centre_p = (np.eye(k) - 1 / k for k in (n, p))
    np.testing.assert_allclose(quotient(matrix), np.sign(matrix) * np.exp(centre_n @ np.log(abs(matrix)) @ centre_p))
    assert np.linalg.matrix_rank(np.kron(centre_n, centre_p)) == (n - 1) * (p - 1)
    scales = np.log(np.abs(matrix / quotient(matrix)))
    assert np.linalg.matrix_rank(scales, tol=1e-9) <= 2


def test_quotient_with_zeros_is_the_least_squares_fit_by_brute_force() -> None:
    matrix = random_matrix(1, 0.4, (9, 7))
    rows, columns = np.nonzero(matrix)
    design = np.concatenate([np.eye(9)[rows], np.eye(7)[columns]], axis=1)
    logs = np.log(np.abs(matrix[rows, columns]))
    residual = logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
    np.testing.assert_allclose(np.log(np.abs(quotient(matrix)[rows, columns])), residual, atol=1e-12)


def test_quotient_follows_a_chain_of_zeros_on_which_alternating_is_slow() -> None:
    size = 200
    chain = np.where(np.abs(np.subtract.outer(np.arange(size), np.arange(size))) <= 1, 1.0, 0.0)
    chain *= np.random.default_rng(0).lognormal(size=chain.shape)
    np.testing.assert_allclose(quotient(rescaled(chain, 3)), quotient(chain), rtol=1e-9)


def test_published_quotient_is_exact_without_zeros_and_moves_entries_with_zeros() -> None:
    dense = random_matrix(2)
    np.testing.assert_allclose(published_quotient(dense), quotient(dense), rtol=1e-12)
    sparse = random_matrix(2, 0.5)
    moved = np.abs(published_quotient(rescaled(sparse, 1, 0.5))[sparse != 0] / published_quotient(sparse)[sparse != 0])
    assert np.abs(moved - 1).max() > 0.01
    logs = np.log(np.abs(sparse), where=sparse != 0, out=np.zeros_like(sparse))
    row, column = (logs.sum(axis) / (sparse != 0).sum(axis) for axis in (1, 0))
    by_hand = np.exp(logs - row[:, None] - column + logs.sum() / (sparse != 0).sum()) * np.sign(sparse)
    np.testing.assert_allclose(published_quotient(sparse), by_hand)
    sparse[3] = 0  # a row without non-zeros stays as it is
    assert (published_quotient(sparse)[3] == 0).all()


@pytest.mark.parametrize("zeros", ["gaussian", "structural"])
@pytest.mark.parametrize("density", [1.0, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_sinkhorn_scaling_has_the_target_sums_and_does_not_see_scales(seed: int, density: float, zeros: str) -> None:
    matrix = random_matrix(seed, density)
    n, p = matrix.shape
    scaled, row, column = sinkhorn_scale(matrix, zeros=zeros)
    mask = matrix != 0
    targets = (mask.sum(1), mask.sum(0)) if zeros == "structural" else (p, n)
    np.testing.assert_allclose((scaled**2).sum(1), targets[0], rtol=1e-10)
    np.testing.assert_allclose((scaled**2).sum(0), targets[1], rtol=1e-10)
    np.testing.assert_allclose(np.exp(row)[:, None] * matrix * np.exp(column), scaled, rtol=1e-10)
    assert row.mean() == pytest.approx(column.mean())
    again, *_ = sinkhorn_scale(rescaled(matrix, seed), zeros=zeros)
    np.testing.assert_allclose(again, scaled, rtol=1e-9)
    turned, column_of, row_of = sinkhorn_scale(matrix.T, zeros=zeros)
    np.testing.assert_allclose(turned.T, scaled, rtol=1e-9)
    np.testing.assert_allclose(row_of, row, atol=1e-9)
    np.testing.assert_allclose(column_of, column, atol=1e-9)


def test_sinkhorn_scaling_minimises_the_objective_of_the_mode() -> None:
    matrix = random_matrix(4, shape=(6, 8))
    _, row, column = sinkhorn_scale(matrix)

    def objective(a: np.ndarray, b: np.ndarray) -> float:
        return 0.5 * ((np.exp(a)[:, None] * matrix * np.exp(b)) ** 2).sum() - 8 * a.sum() - 6 * b.sum()

    best = objective(row, column)
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert objective(row + 0.01 * rng.normal(size=6), column + 0.01 * rng.normal(size=8)) > best


@pytest.mark.parametrize("seed", range(2))
def test_entries_of_extreme_size_do_no_harm(seed: int) -> None:
    matrix = random_matrix(seed, shape=(30, 40))
    extreme = rescaled(matrix, seed, 75.0)
    assert np.abs(np.log10(np.abs(extreme))).max() > 120
    np.testing.assert_allclose(quotient(extreme), quotient(matrix), rtol=1e-11)
    np.testing.assert_allclose(sinkhorn_scale(extreme)[0], sinkhorn_scale(matrix)[0], rtol=1e-10)


def test_names_and_replicates_survive() -> None:
    stack = np.stack([random_matrix(0), rescaled(random_matrix(1), 1)])
    cells, genes = [f"c{i}" for i in range(12)], [f"g{i}" for i in range(17)]
    data = xr.DataArray(stack, dims=("replicate", "cell", "gene"), coords={"cell": cells, "gene": genes})
    left = quotient(data)
    np.testing.assert_array_equal(left[1], quotient(stack[1]))
    scaled, row, column = sinkhorn_scale(data)
    assert (scaled.dims, row.dims, column.dims) == (data.dims, ("replicate", "cell"), ("replicate", "gene"))
    assert row["cell"].values.tolist() == cells
    assert column["gene"].values.tolist() == genes
    _, row_alone, column_alone = sinkhorn_scale(data[1])
    assert (row_alone.dims, column_alone.dims) == (("cell",), ("gene",))
    np.testing.assert_array_equal(row[1], row_alone)


def test_integers_float32_and_sparse_are_taken() -> None:
    counts = np.random.default_rng(0).poisson(5, (8, 9)) + 1
    wanted = quotient(counts.astype(float))
    for given in (counts, counts.astype(np.float32), counts.astype(np.uint8), sp.csr_matrix(counts), counts.tolist()):
        result = quotient(given)
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, wanted)


def bad(change) -> np.ndarray:
    matrix = random_matrix(0)
    change(matrix)
    return matrix


def split_in_two() -> np.ndarray:
    matrix = random_matrix(0)
    matrix[:4, 5:] = matrix[4:, :5] = 0
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (bad(lambda m: m.__setitem__((2, 3), np.nan)), "1 NaN and 0 infinite values, the first at row 2, column 3"),
        (bad(lambda m: m.__setitem__((2, 3), -np.inf)), "0 NaN and 1 infinite"),
        (bad(lambda m: m.__setitem__(2, 0)), "1 rows without non-zeros: 'row 2'"),
        (bad(lambda m: m.__setitem__((slice(None), [4, 6]), 0)), "2 columns without non-zeros: 'column 4', 'column 6'"),
        (np.zeros((3, 4)), "3 rows without non-zeros"),
        (random_matrix(0)[:1], "found 1 rows and 17 columns; wanted at least 2"),
        (random_matrix(0)[:, :1], "found 12 rows and 1 columns"),
        (np.full((3, 4), 2.5), "rank one"),
        (np.outer([1, -2, 3], [4.0, 5, -6, 1e-9]), "rank one"),
        (np.outer([0.1, 0.2, 0.3], [4.0, 5, 7, 1e-9]).astype(np.float32), "rank one"),
        (rescaled(np.sign(random_matrix(0)), 1, 70.0), "rank one"),
        (split_in_two(), "2 connected components"),
        (np.array([["a", "b"], ["c", "d"]]), "dtype <U1"),
        (np.ones((2, 2), dtype=bool), "dtype bool"),
        (np.ones(4), "shape"),
        (np.ones((0, 4)), "shape"),
        (sp.coo_matrix((100_000, 100_000)), "at most 100000000 entries"),
        (xr.DataArray(np.ones((3, 4)), dims=("gene", "cell")), "transpose"),
    ],
)
@pytest.mark.parametrize("function", [quotient, sinkhorn_scale])
def test_bad_matrices_are_refused(function, matrix, message: str) -> None:
    with pytest.raises(DataError, match=message):
        function(matrix)


def test_messages_name_cells_genes_and_replicates() -> None:
    stack = np.stack([random_matrix(0), random_matrix(1)])
    stack[1, :, 2] = 0
    data = xr.DataArray(stack, dims=("replicate", "cell", "gene"), coords={"gene": [f"g{i}" for i in range(17)]})
    with pytest.raises(DataError, match="counts, replicate 1: found 1 columns without non-zeros: 'gene g2'"):
        check_matrix("counts", data)
    stack[0, 3, 4] = np.nan
    with pytest.raises(DataError, match="replicate 0, cell 3, gene g4"):
        dense_matrix("counts", data)


def test_patterns_of_zeros_without_a_scaling_name_the_rows() -> None:
    with pytest.raises(NumericalError, match=r"1 of 2 rows \('row 0'\) have their non-zeros in only 1 of 2 columns"):
        sinkhorn_scale(np.array([[1.0, 0.0], [2.0, 3.0]]))  # squares would have to be the identity: 2 runs to zero
    crowded = random_matrix(0)
    crowded[[2, 5], 1:] = 0
    with pytest.raises(NumericalError, match=r"rows \('row [25]'.* in only 1 of 17 columns"):
        sinkhorn_scale(crowded)
    scaled, *_ = sinkhorn_scale(crowded, zeros="structural")
    np.testing.assert_allclose((scaled**2).sum(1), (crowded != 0).sum(1), rtol=1e-10)
    with pytest.raises(NumericalError, match="did not converge"):
        sinkhorn_scale(10 ** np.random.default_rng(0).uniform(-150, 150, (30, 40)))
    with pytest.raises(DataError, match="zeros: found 'none'"):
        sinkhorn_scale(crowded, zeros="none")


def test_counts_of_blood_cells_can_be_scaled() -> None:
    counts = pbmc()["expression"]
    scaled, *_ = sinkhorn_scale(counts)
    np.testing.assert_allclose((scaled**2).sum("cell"), 700, rtol=1e-10)


@pytest.fixture
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    mean = rng.lognormal(1, 1.5, 300)
    return rng.poisson(mean * rng.gamma(rng.uniform(0.3, 5, 300), size=(60, 300))).astype(float)


def test_dispersion_by_data_frame(counts: np.ndarray) -> None:
    table = pd.DataFrame({"mean": counts.mean(0), "variance": counts.var(0, ddof=1)})
    table["dispersion"] = np.log(table["variance"] / table["mean"])
    groups = table.groupby(pd.cut(np.log1p(table["mean"]), bins=20), observed=True)["dispersion"]
    wanted = (table["dispersion"] - groups.transform("mean")) / groups.transform("std")
    np.testing.assert_allclose(normalized_dispersion(counts), wanted.fillna(1.0))


def test_the_first_share_with_the_closest_number_of_genes_is_taken(counts: np.ndarray) -> None:
    data = choose_genes(counts, num_top=100, target=40)
    best = np.argsort(-normalized_dispersion(counts))[:100]
    detected = (counts > 0).sum(0)[best]
    numbers = [(detected > q / 100 * 60).sum() for q in range(101)]
    q = next(q for q in range(101) if abs(numbers[q] - 40) == min(abs(n - 40) for n in numbers))
    chosen = np.sort(best[detected > q / 100 * 60])
    assert data["gene"].values.tolist() == [f"gene_{i}" for i in chosen]
    np.testing.assert_array_equal(data["expression"], counts[:, chosen])
    assert data.attrs == {"num_top": 100, "smallest_share": pytest.approx(q / 100)}


def test_dispersion_of_a_lone_gene_and_of_constant_genes() -> None:
    counts = np.array([[1.0, 2, 1000, 3], [2, 1, 2000, 3], [1, 1, 1500, 3]])
    score = normalized_dispersion(counts)
    assert score[2] == 1.0
    assert score[3] == -np.inf
    assert score[:2].sum() == pytest.approx(0, abs=1e-12)


def test_choice_keeps_names_and_needs_counts() -> None:
    data = pbmc()
    chosen = choose_genes(data)
    assert chosen.sizes["cell"] == 700
    assert 690 <= chosen.sizes["gene"] <= 710
    xr.testing.assert_identical(chosen["label"], data["label"])
    for wrong in (data.drop_vars("expression"), -np.ones((3, 4))):
        with pytest.raises(DataError, match="counts"):
            choose_genes(wrong)
    with pytest.raises(DataError, match="no gene that varies"):
        choose_genes(np.ones((3, 4)))
    with pytest.raises(DataError, match="num_top"):
        choose_genes(data, num_top=0)


@pytest.mark.skipif(not SCRNA.is_dir(), reason="the benchmark sets are not in the package")
@pytest.mark.parametrize("name", ["yan_embryo", "camp_fetal", "mix_celseq2", "mix_celseq2_5cl_p1", "pbmc68k_reduced"])
def test_choice_agrees_with_scanpy(name: str) -> None:
    stored = np.load(SCRNA / f"{name}.npz", allow_pickle=False)
    matrix = sp.csr_matrix((stored["data"], stored["indices"], stored["indptr"]), shape=tuple(stored["shape"]))
    chosen = choose_genes(matrix.expm1() if name == "pbmc68k_reduced" else matrix)
    positions = [int(str(gene).removeprefix("gene_")) for gene in chosen["gene"].values]
    assert stored["genes"][positions].tolist() == stored["square_genes"].tolist()
