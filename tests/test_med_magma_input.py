"""Bad and unusual input of MED-MAGMA: the right answer or a clear error, never the same graph for different data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import sparse

import embergraph as eg
from embergraph.datasets import simulated_matrix
from embergraph.models import MEDMAGMA, FixedGraph, NormalScales, SparseGraph, SpectralGraph

N, P = 10, 12
SPECTRAL: dict[str, Any] = {"cell_graph": SpectralGraph(0.9), "gene_graph": SpectralGraph(0.9)}


def values_of(seed: int = 0) -> np.ndarray:
    return simulated_matrix(N, P, seed=seed)["expression"].values.copy()


def dataset(values: Any) -> xr.Dataset:
    values = np.asarray(values)
    dims = ("cell", "gene") if values.ndim == 2 else ("replicate", "cell", "gene")
    names = {"cell": [f"c{i}" for i in range(values.shape[-2])], "gene": [f"g{j}" for j in range(values.shape[-1])]}
    return xr.Dataset({"expression": (dims, values)}, names)


def fitted(data: xr.Dataset, **options: Any) -> Any:
    return eg.fit(MEDMAGMA.for_data(data, **options), data, num_steps=12, progress=False)


def graphs_of(data: xr.Dataset, **options: Any) -> xr.Dataset:
    found = fitted(data, **options).graphs()
    for name, values in found.data_vars.items():
        assert np.isfinite(values).all(), name
    return found


def difference(one: xr.Dataset, other: xr.Dataset) -> float:
    return max(float(np.abs(one[name].values - other[name].values).max()) for name in one)


# --- errors ----------------------------------------------------------------------------------------------------------


def with_entry(value: float) -> np.ndarray:
    values = values_of()
    values[2, 3] = value
    return values


def without(row: int | None = None, col: int | None = None) -> np.ndarray:
    values = values_of()
    if row is not None:
        values[row] = 0
    if col is not None:
        values[:, col] = 0
    return values


def two_blocks() -> np.ndarray:
    values = values_of()
    values[:4, 5:] = 0
    values[4:, :5] = 0
    return values


def rank_one(signs: bool = False) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = np.outer(rng.gamma(2.0, size=N), rng.gamma(2.0, size=P))
    return values * np.outer(rng.choice([-1, 1], N), rng.choice([-1, 1], P)) if signs else values


BAD: dict[str, tuple[Callable[[], np.ndarray], str]] = {
    "nan": (lambda: with_entry(np.nan), r"expression.*(NaN|finite).*"),
    "infinite": (lambda: with_entry(np.inf), r"expression.*(infinite|finite)"),
    "minus infinite": (lambda: with_entry(-np.inf), r"expression.*(infinite|finite)"),
    "empty row": (lambda: without(row=3), r"expression.*rows without non-zeros.*c3"),
    "empty column": (lambda: without(col=7), r"expression.*columns without non-zeros.*g7"),
    "all zero": (lambda: 0 * values_of(), r"expression.*non-zeros"),
    "rank one": (rank_one, r"expression.*rank one"),
    "rank one with signs": (lambda: rank_one(signs=True), r"expression.*rank one"),
    "constant": (lambda: np.full((N, P), 3.0), r"expression.*rank one"),
    "constant integers": (lambda: np.full((N, P), 3), r"expression.*rank one"),
    "disconnected": (two_blocks, r"expression.*2 connected components"),
    "complex": (lambda: values_of() + 1j, r"expression.*(complex|real)"),
    "text": (lambda: values_of().astype(str), r"expression"),
    "bool": (lambda: values_of() > 0, r"expression"),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_bad_matrices_are_refused_by_name(kind: str) -> None:
    make, words = BAD[kind]
    with pytest.raises((eg.DataError, eg.SchemaError), match=words):
        fitted(dataset(make()))


@pytest.mark.parametrize(
    "kind", ["nan", "infinite", "empty row", "empty column", "rank one", "disconnected", "constant"]
)
def test_one_bad_matrix_among_good_ones_is_refused_by_name(kind: str) -> None:
    make, words = BAD[kind]
    with pytest.raises((eg.DataError, eg.SchemaError), match=words) as caught:
        fitted(dataset(np.stack([values_of(1), make()])))
    if kind not in ("nan", "infinite"):  # those are found before matrices are looked at one by one
        assert "replicate 1" in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1), (0, 5), (5, 0)])
def test_a_single_row_or_column_is_refused(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    with pytest.raises((eg.DataError, eg.SchemaError), match=r"num_cells|num_genes|expression"):
        fitted(xr.Dataset({"expression": (("cell", "gene"), values)}))


def test_data_of_another_model_are_refused() -> None:
    data, model = dataset(values_of()), MEDMAGMA(N, P)
    cases: list[Any] = [
        dataset(values_of()[:-1]), dataset(values_of()[:, :-1]), dataset(np.stack([values_of(), values_of(1)])),
        data.rename(expression="counts"), xr.Dataset({"expression": (("gene", "cell"), values_of())}),
    ]  # fmt: skip
    for other in cases:
        with pytest.raises((eg.SchemaError, eg.DataError), match="expression"):
            eg.fit(model, other, num_steps=2, progress=False)
    with pytest.raises((eg.SchemaError, eg.DataError), match="replicate"):
        eg.fit(MEDMAGMA(N, P, 3), dataset(np.stack([values_of(), values_of(1)])), num_steps=2, progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 0},
        {"num_steps": 2.5},
        {"tolerance": -1.0},
        {"accelerate": "fast"},
        {"e_step": "exact"},
        {"seed": -1},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    data = dataset(values_of())
    with pytest.raises(eg.DataError, match=next(iter(options))):
        eg.fit(MEDMAGMA.for_data(data), data, **{"num_steps": 2, "progress": False, **options})


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("log_density", "nan"),
        ("log_density", "empty row"),
        ("log_density", "constant"),
        ("posterior", "nan"),
        ("report", "nan"),
    ],
)
def test_later_data_are_checked_too(question: str, kind: str) -> None:
    data = dataset(values_of())
    fit = fitted(data)
    bad = dataset(BAD[kind][0]())
    with pytest.raises((eg.DataError, eg.SchemaError), match="expression"):
        getattr(fit, question)(bad)


# --- right answers ---------------------------------------------------------------------------------------------------


def test_sparse_matrices_are_their_dense_selves() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (N, P)) * rng.choice([-2, -1, 1, 3], (N, P))  # signed: no common profile
    wanted = graphs_of(dataset(counts.astype(float)))
    for kind in (sparse.csr_matrix, sparse.csc_array):
        like = SimpleNamespace(
            X=kind(counts), layers={"raw": kind(counts.astype(np.float32))}, obs=SimpleNamespace(columns=[]),
            obs_names=[f"c{i}" for i in range(N)], var_names=[f"g{j}" for j in range(P)],
        )  # fmt: skip
        for layer in (None, "raw"):
            data = eg.from_anndata(like, layer=layer)
            found = graphs_of(data)
            assert difference(found, wanted) < 1e-10
            assert list(found["gene_other"].values) == like.var_names
    assert difference(graphs_of(eg.from_arrays(sparse.csr_matrix(counts))), wanted) < 1e-10


def test_precision_and_kind_of_the_numbers_do_not_matter() -> None:
    counts = np.round(30 * np.random.default_rng(0).normal(size=(N, P)))
    wanted = graphs_of(dataset(counts))
    for dtype in (np.int8, np.int16, np.int64, np.float32, np.float16, ">f8"):
        assert difference(graphs_of(dataset(counts.astype(dtype))), wanted) < 1e-10, dtype
    rough = values_of().astype(np.float32)
    assert difference(graphs_of(dataset(rough)), graphs_of(dataset(rough.astype(float)))) < 1e-12
    frame = eg.from_arrays(values_of(), gene_names=[f"g{j}" for j in range(P)])
    assert difference(graphs_of(frame), graphs_of(dataset(values_of()))) < 1e-12
    not_owned = np.asfortranarray(values_of())
    assert difference(graphs_of(dataset(not_owned)), graphs_of(dataset(values_of()))) < 1e-12


@pytest.mark.parametrize("power", [-300, -150, 150, 300])
def test_units_do_not_matter(power: int) -> None:
    wanted = fitted(dataset(values_of()))
    found = fitted(dataset(values_of() * 10.0**power))
    assert difference(found.graphs(), wanted.graphs()) < 1e-8
    np.testing.assert_allclose(found.scales()["log_u"], wanted.scales()["log_u"], atol=1e-7)
    shift = float(found.scales()["log_omega"] - wanted.scales()["log_omega"])
    assert shift == pytest.approx(-2 * power * np.log(10.0), rel=1e-9)
    assert np.isfinite(found.posterior(dataset(values_of() * 10.0**power), 20)["posterior"]["log_v"]).all()


def test_rows_and_columns_of_different_units_do_not_matter() -> None:
    wanted = graphs_of(dataset(values_of()))
    wild = values_of() * (10.0 ** np.linspace(-150, 150, N))[:, None]
    assert difference(graphs_of(dataset(wild)), wanted) < 1e-8
    wild = values_of() * 10.0 ** np.linspace(100, -200, P)
    assert difference(graphs_of(dataset(wild)), wanted) < 1e-8


def test_tiny_entries_do_not_spoil_the_rest() -> None:
    values = values_of()
    values[0, 0] = 1e-150
    zero = values.copy()
    zero[0, 0] = 0.0
    assert difference(graphs_of(dataset(values)), graphs_of(dataset(zero))) < 1e-6


@pytest.mark.parametrize("zeros", ["gaussian", "structural"])
def test_zeros_are_allowed_and_invariance_holds_with_them(zeros: Any) -> None:
    rng = np.random.default_rng(1)
    values = values_of() * (rng.random((N, P)) < 0.8)
    scaled = values * np.exp(rng.normal(0, 2, (N, 1)) + rng.normal(0, 2, P))
    one, other = (graphs_of(dataset(v), zeros=zeros) for v in (values, scaled))
    assert difference(one, other) < 1e-8


def test_conventions_for_zeros_differ() -> None:
    values = values_of() * (np.random.default_rng(1).random((N, P)) < 0.7)
    gaussian, structural = (fitted(dataset(values), zeros=zeros) for zeros in ("gaussian", "structural"))
    assert difference(gaussian.graphs(), structural.graphs()) > 1e-4
    dense = dataset(values_of())
    assert difference(graphs_of(dense, zeros="gaussian"), graphs_of(dense, zeros="structural")) < 1e-10


def test_zeros_without_a_scaling_are_refused_or_need_a_prior() -> None:
    """One row with a single entry, whose column has only that row beside: no finite mode under flat scales."""
    values = values_of()
    values[0, 1:] = 0
    values[1, 2:] = 0  # rows 0 and 1 live in columns 0 and 1
    values[2:, 0] = 0  # and column 0 in rows 0 and 1
    with suppress(eg.DataError, eg.NumericalError):  # refused
        assert float(graphs_of(dataset(values))["cell_score"].max()) < 1e3
    proper = {"cell_scales": NormalScales(), "gene_scales": NormalScales()}
    graphs_of(dataset(values), **proper)


@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (3, 3), (2, 40), (40, 3)])
def test_small_and_thin_matrices_give_numbers(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    for graph in ({}, SPECTRAL):
        graphs_of(dataset(values), **graph)


def test_unregularised_spectra_of_one_matrix_are_refused_or_finite() -> None:
    """The estimate does not exist: an error or finite numbers, but no NaN and no silent infinity."""
    options = {"cell_graph": SpectralGraph(0.0), "gene_graph": SpectralGraph(0.0)}
    with suppress(eg.DataError, eg.NumericalError):  # refused
        assert float(abs(graphs_of(dataset(values_of()), **options)["cell_precision"]).max()) < 1e6


def test_precisions_outside_of_the_cone_are_refused() -> None:
    bad = np.eye(N) - 3 * np.ones((N, N))
    with pytest.raises((eg.DataError, eg.NumericalError), match="definite"):
        fitted(dataset(values_of()), cell_graph=FixedGraph(bad), gene_graph=FixedGraph(P))


@pytest.mark.filterwarnings("ignore:.*linked, more strongly than any:UserWarning")  # counts among them
def test_different_data_never_give_the_same_graph() -> None:
    """Nothing falls back to a default: random matrices, counts, zeros and single changed entries all differ."""
    rng = np.random.default_rng(0)
    touched = values_of()
    touched[3, 4] *= 1.1
    cases = [
        values_of(),
        values_of(1),
        touched,
        values_of() ** 3,
        rng.poisson(3.0, (N, P)) + 0.0,
        rng.normal(size=(N, P)),
    ]
    found = [graphs_of(dataset(values)) for values in cases]
    for i in range(len(found)):
        for k in range(i):
            assert difference(found[i], found[k]) > 1e-4, (i, k)


def test_counts_with_a_common_profile_are_said_to_be_no_sparse_graph(tmp_path: Path) -> None:
    """Counts are all of one sign, which a model of mean zero takes for one factor that links every pair."""
    data = dataset(np.random.default_rng(0).poisson(5.0, (30, 40)) + 1)
    with pytest.warns(UserWarning, match="SpectralGraph"):
        fit = eg.fit(MEDMAGMA.for_data(data), data, progress=False, checkpoint=tmp_path / "run.ckpt")
    found = fit.graphs()
    for axis in ("cell", "gene"):
        assert float(abs(found[f"{axis}_partial_correlation"]).max()) <= 1.0
    assert "not_sparse" in fit.settings
    with pytest.raises(eg.NotSparseError, match="graph"):
        fitted(data, cell_graph=SparseGraph(), gene_graph=SparseGraph())
    few = dataset(np.random.default_rng(0).poisson(5.0, (N, P)) + 1)
    unsigned = [graphs_of(dataset(few["expression"].values.astype(dtype)), **SPECTRAL) for dtype in (np.uint8, float)]
    assert difference(*unsigned) < 1e-10
