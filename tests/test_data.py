"""Data in: names, kinds and alignment survive; every bad input is refused by name; splits take the cells they say."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import sparse

from embergraph.data import from_anndata, from_arrays, from_dataframes, random_split, split, validate
from embergraph.models.parts.errors import DataError

CELLS, GENES = ["c1", "c2", "c3", "c4"], ["Raf", "Mek", "Erk"]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def full(**changes: object) -> xr.Dataset:
    arguments: dict = {
        "expression": numbers(4, 3),
        "covariates": numbers(4, 2, seed=1),
        "environment": ["b", "a", "b", "a"],
        "gene_names": GENES,
        "covariate_names": ["age", "dose"],
        "cell_names": CELLS,
    }
    return from_arrays(**(arguments | changes))


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    expression = pd.DataFrame(numbers(4, 3), index=CELLS, columns=GENES)
    covariates = pd.DataFrame(
        {
            "age": [1, 2, 3, 4],
            "sex": ["m", "f", "f", "m"],
            "stage": pd.Categorical(["late", "early", "late", "early"], categories=["early", "mid", "late"]),
            "treated": [True, True, True, True],
        },
        index=CELLS,
    )
    return expression, covariates


ENCODED = ["age", "sex[f]", "sex[m]", "stage[early]", "stage[mid]", "stage[late]", "treated[False]", "treated[True]"]
CODES = np.array(
    [[1, 0, 1, 0, 0, 1, 0, 1], [2, 1, 0, 1, 0, 0, 0, 1], [3, 1, 0, 0, 0, 1, 0, 1], [4, 0, 1, 1, 0, 0, 0, 1]]
)


def reload(data: xr.Dataset, folder) -> xr.Dataset:
    data.to_netcdf(folder / "data.nc", engine="h5netcdf")
    with xr.open_dataset(folder / "data.nc", engine="h5netcdf") as stored:
        return stored.load()


# --- arrays


def test_arrays_become_named_variables():
    data = full()
    assert {name: data[name].dims for name in data.data_vars} == {
        "expression": ("cell", "gene"),
        "covariates": ("cell", "covariate"),
        "environment": ("cell",),
    }
    np.testing.assert_array_equal(data["expression"], numbers(4, 3))
    np.testing.assert_array_equal(data["covariates"], numbers(4, 2, seed=1))
    assert data["cell"].values.tolist() == CELLS
    assert data["gene"].values.tolist() == GENES
    assert data["covariate"].values.tolist() == ["age", "dose"]
    assert data["environment"].values.tolist() == [1, 0, 1, 0]
    assert data["condition"].values.tolist() == ["a", "b"]
    assert all(data[dim].dtype.kind == "U" for dim in data.dims)


def test_default_names_and_absent_variables():
    data = from_arrays(numbers(3, 2))
    assert data["cell"].values.tolist() == ["cell_0", "cell_1", "cell_2"]
    assert data["gene"].values.tolist() == ["gene_0", "gene_1"]
    assert set(data.data_vars) == {"expression"}


@pytest.mark.parametrize(
    ("given", "kept"), [(np.float32, np.float32), (np.float64, np.float64), (np.float16, np.float64), (int, np.float64)]
)
def test_dtypes(given, kept):
    data = from_arrays((10 * numbers(5, 2)).astype(given), np.ones((5, 1)))
    assert data["expression"].dtype == kept
    assert data["covariates"].dtype == kept


@pytest.mark.parametrize(
    ("labels", "codes", "levels"),
    [
        (["b", "a", "b", "a"], [1, 0, 1, 0], ["a", "b"]),
        (np.array([10, 9, 10, 9]), [1, 0, 1, 0], ["9", "10"]),  # integers in the order of numbers, not of text
        ([True, True, True, True], [1, 1, 1, 1], ["False", "True"]),
        (np.array(["b", "a", "b", "a"], dtype=object), [1, 0, 1, 0], ["a", "b"]),
        (pd.Categorical(["u", "t", "u", "t"], categories=["u", "s", "t"]), [0, 2, 0, 2], ["u", "s", "t"]),
        (pd.Series(pd.Categorical(["u", "t", "u", "t"], categories=["u", "t"])), [0, 1, 0, 1], ["u", "t"]),
        (pd.CategoricalIndex(["u", "t", "u", "t"], categories=["u", "t"]), [0, 1, 0, 1], ["u", "t"]),
        (pd.Categorical([7, 3, 7, 3]), [1, 0, 1, 0], ["3", "7"]),
    ],
)
def test_environment_labels(labels, codes, levels):
    data = full(environment=labels)
    assert data["environment"].dtype == np.int64
    assert data["environment"].values.tolist() == codes
    assert data["condition"].values.tolist() == levels


def test_environment_names_outlive_selection_of_cells():
    rest = full().isel(cell=[0, 2])
    assert rest["condition"].values[rest["environment"].values].tolist() == ["b", "b"]


def test_netcdf_keeps_everything(tmp_path):
    data = full(
        gene_names=pd.CategoricalIndex(GENES),
        cell_names=np.array(CELLS, dtype=object),
        covariate_names=pd.Index(["x/y", "z"]),
    )
    stored = reload(data, tmp_path)
    xr.testing.assert_identical(stored, data)
    assert validate(stored) is stored
    assert stored["expression"].dtype == np.float64
    xr.testing.assert_identical(
        reload(full(expression=numbers(4, 3).astype("f4")), tmp_path)["expression"].astype("f4"),
        full(expression=numbers(4, 3).astype("f4"))["expression"],
    )


def test_one_new_cell_passes_when_asked_for():
    assert from_arrays(np.ones((1, 2)), min_cells=1).sizes == {"cell": 1, "gene": 2}
    assert from_arrays(np.ones((3, 2)), min_cells=1).sizes["cell"] == 3


# --- data frames


def test_dataframes_encode_factors():
    expression, covariates = frames()
    data = from_dataframes(expression, covariates, environment=covariates["stage"])
    assert data["covariate"].values.tolist() == ENCODED
    np.testing.assert_array_equal(data["covariates"], CODES)
    assert data["covariates"].dtype == np.float64
    assert data["condition"].values.tolist() == ["early", "mid", "late"]
    assert data["environment"].values.tolist() == [2, 0, 2, 0]
    assert data["gene"].values.tolist() == GENES
    assert data["cell"].values.tolist() == CELLS


def test_dataframes_are_matched_by_name():
    expression, covariates = frames()
    shuffled = covariates.iloc[[2, 0, 3, 1]]
    data = from_dataframes(expression, shuffled, environment=shuffled["stage"])
    xr.testing.assert_identical(data, from_dataframes(expression, covariates, environment=covariates["stage"]))
    # Labels without an index follow the rows of the expression.
    assert from_dataframes(expression, shuffled, environment=list("xyxy"))["environment"].values.tolist() == [
        0,
        1,
        0,
        1,
    ]


def test_dataframes_match_integer_and_text_names():
    expression, covariates = frames()
    expression.index = [1, 2, 3, 4]
    covariates.index = ["1", "2", "3", "4"]
    data = from_dataframes(expression, covariates.iloc[::-1])
    np.testing.assert_array_equal(data["covariates"], CODES)


def test_dataframes_keep_float32_and_take_nullable_numbers():
    expression, covariates = frames()
    data = from_dataframes(expression.astype("float32"), covariates)
    assert (data["expression"].dtype, data["covariates"].dtype) == (np.float32, np.float32)
    whole = (10 * expression).round()
    nullable = from_dataframes(whole.astype("Int64"), covariates.astype({"age": "Int64", "treated": "boolean"}))
    np.testing.assert_array_equal(nullable["expression"], whole)
    np.testing.assert_array_equal(nullable["covariates"], CODES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e, c: (e, c.drop(index="c2")), ["covariates", "without covariates 'c2'"]),
        (lambda e, c: (e.drop(index="c3"), c), ["covariates", "without expression 'c3'"]),
        (lambda e, c: (e, c.rename(index={"c1": "c9"})), ["'c1'", "'c9'", "same cells"]),
        (lambda e, c: (e, c.rename(index={"c1": "c2"})), ["covariates", "'c2'", "more than once"]),
        (lambda e, c: (e.rename(index={"c1": "c2"}), c), ["cell", "'c2'", "more than once"]),
        (lambda e, c: (e.assign(Raf=list("abcd")), c), ["expression", "'Raf'", "not numeric"]),
        (lambda e, c: (e, c.assign(sex=["m", None, "f", "m"])), ["'sex'", "1 missing", "'c2'"]),
        (lambda e, c: (e, c.assign(age=[1, 2, np.nan, np.nan])), ["'age'", "2 missing", "'c3'"]),
        (lambda e, c: (e, c.assign(age=pd.array([1, None, 3, 4], dtype="Int64"))), ["'age'", "1 missing", "'c2'"]),
        (lambda e, c: (e, c.assign(stage=pd.Categorical(["a", "b", "a", None]))), ["'stage'", "1 missing", "'c4'"]),
        (lambda e, c: (e, c.assign(sex=["m", 2.5, "f", "m"])), ["'sex'", "float", "str", "all text"]),
        (lambda e, c: (e, c.assign(age=pd.to_datetime(["2020-01-01"] * 4))), ["'age'", "datetime64"]),
        (lambda e, c: (e, c.rename(columns={"sex": "age"})), ["'age'", "one column"]),
        (lambda e, c: (e.mask(e == e.iloc[1, 2]), c), ["expression", "1 NaN", "'c2'", "'Erk'"]),
    ],
)
def test_bad_dataframes(change, words):
    with pytest.raises(DataError) as error:
        from_dataframes(*change(*frames()))
    for word in words:
        assert word in str(error.value)


# --- AnnData


def annotated(matrix, **layers: object) -> SimpleNamespace:
    _, covariates = frames()
    return SimpleNamespace(
        X=matrix, layers=layers, obs=covariates, obs_names=covariates.index, var_names=pd.CategoricalIndex(GENES)
    )


def test_anndata_with_layer_genes_and_columns():
    counts = np.arange(12.0).reshape(4, 3) ** 2
    adata = annotated(numbers(4, 3), counts=counts)
    data = from_anndata(adata, covariates=["stage", "age"], layer="counts", genes=["Erk", "Raf"], environment="sex")
    np.testing.assert_array_equal(data["expression"], counts[:, [2, 0]])
    assert data["gene"].values.tolist() == ["Erk", "Raf"]
    assert data["covariate"].values.tolist() == ["stage[early]", "stage[mid]", "stage[late]", "age"]
    np.testing.assert_array_equal(data["covariates"], CODES[:, [3, 4, 5, 0]])
    assert data["condition"].values.tolist() == ["f", "m"]
    np.testing.assert_array_equal(from_anndata(adata)["expression"], adata.X)
    assert set(from_anndata(adata).data_vars) == {"expression"}


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array])
@pytest.mark.parametrize("genes", [None, ["Mek", "Raf"]])
def test_sparse_expression(kind, genes):
    dense = np.array([[0, 1, 0], [2, 0, 0], [0, 0, 3], [0, 4, 0]], dtype=np.float32)
    data = from_anndata(annotated(kind(dense)), genes=genes)
    np.testing.assert_array_equal(data["expression"], dense if genes is None else dense[:, [1, 0]])
    assert data["expression"].dtype == np.float32


def test_obs_may_be_a_plain_mapping():
    adata = annotated(numbers(4, 3))
    adata.obs = {name: list(column) for name, column in frames()[1].items()}
    data = from_anndata(adata, covariates=("age", "sex", "treated"))
    np.testing.assert_array_equal(data["covariates"], CODES[:, [0, 1, 2, 6, 7]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layer": "raw"}, ["layer 'raw'", "'counts'"]),
        ({"genes": ["Raf", "Foo"]}, ["'Foo'", "'Mek'"]),
        ({"covariates": ["batch"]}, ["'batch'", "'age'", "'stage'"]),
        ({"environment": "batch"}, ["environment 'batch'", "'stage'"]),
        ({"genes": ["Raf", "Raf"]}, ["gene", "'Raf'", "more than once"]),
        ({"genes": []}, ["expression is empty", "0 genes"]),
    ],
)
def test_unknown_names_in_anndata(arguments, words):
    with pytest.raises(DataError) as error:
        from_anndata(annotated(numbers(4, 3), counts=numbers(4, 3)), **arguments)
    for word in words:
        assert word in str(error.value)


@pytest.mark.filterwarnings("ignore")  # anndata's own, under this pandas
def test_real_anndata():
    try:
        anndata = pytest.importorskip("anndata")
    except Exception as error:  # an installed anndata that does not go with the installed pandas
        pytest.skip(str(error))
    plain = annotated(sparse.csr_matrix(np.abs(numbers(4, 3))))
    adata = anndata.AnnData(X=plain.X, obs=plain.obs, var=pd.DataFrame(index=GENES))
    arguments = {"covariates": ["stage", "age"], "genes": ["Erk", "Raf"], "environment": "sex"}
    xr.testing.assert_identical(from_anndata(adata, **arguments), from_anndata(plain, **arguments))


# --- bad input


def with_value(value: float, row: int, column: int) -> np.ndarray:
    array = numbers(4, 3)
    array[row, column] = value
    return array


BAD_ARRAYS = {
    "one axis": ({"expression": numbers(4)}, ["expression", "(4,)", "cell, gene"]),
    "data frame": ({"expression": frames()[0]}, ["expression", "data frame", "from_dataframes"]),
    "text": ({"expression": np.full((4, 3), "x")}, ["expression", "<U1", "real numbers"]),
    "objects": ({"expression": np.full((4, 3), None)}, ["expression", "object", "real numbers"]),
    "complex": ({"expression": numbers(4, 3) + 1j}, ["expression", "complex128", "real numbers"]),
    "bool covariates": ({"covariates": numbers(4, 2) > 0}, ["covariates", "bool", "real numbers"]),
    "NaN": ({"expression": with_value(np.nan, 2, 1)}, ["expression", "1 NaN and 0 infinite", "'c3'", "'Mek'"]),
    "infinite": ({"expression": with_value(-np.inf, 0, 2)}, ["expression", "0 NaN and 1 infinite", "'c1'", "'Erk'"]),
    "NaN covariate": (
        {"covariates": np.where([[0, 0], [0, 0], [0, 1], [1, 1]], np.nan, 1.0)},
        ["covariates", "3 NaN", "cell 'c3', covariate 'dose'"],
    ),
    "no cells": (
        {
            "expression": numbers(0, 3),
            "cell_names": None,
            "covariates": None,
            "covariate_names": None,
            "environment": None,
        },
        ["expression is empty", "0 cells"],
    ),
    "no covariates": ({"covariates": numbers(4, 0), "covariate_names": []}, ["covariates is empty", "0 covariates"]),
    "one cell": (
        {
            "expression": numbers(1, 3),
            "cell_names": None,
            "covariates": None,
            "covariate_names": None,
            "environment": None,
        },
        ["1 cells", "at least 2"],
    ),
    "constant genes": ({"expression": numbers(4, 3) * [0, 1, 0]}, ["constant in 2 genes", "'Raf', 'Erk'"]),
    "fewer covariate rows": ({"covariates": numbers(3, 2)}, ["covariates has 3 rows", "wanted 4"]),
    "fewer environments": ({"environment": ["a", "b", "a"]}, ["environment", "(3,)", "4 labels"]),
    "environment as a name": ({"environment": "batch"}, ["environment", "'batch'", "4 labels"]),
    "environment of floats": ({"environment": [0.0, 1.0, 0.0, 1.0]}, ["environment", "float64", "all integers"]),
    "environment missing": ({"environment": ["a", None, "b", "a"]}, ["environment", "1 missing", "'c2'"]),
    "too few names": ({"gene_names": ["Raf", "Mek"]}, ["gene_names", "(2,)", "wanted 3"]),
    "names without values": ({"covariates": None}, ["covariate_names", "without covariates"]),
    "cells twice": ({"cell_names": ["c1", "c1", "c3", "c3"]}, ["cell names", "'c1', 'c3'", "more than once"]),
    "genes twice": ({"gene_names": ["Raf", "Raf", "Erk"]}, ["gene names", "'Raf'", "more than once"]),
    "covariates twice": ({"covariate_names": ["age", "age"]}, ["covariate names", "'age'", "more than once"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case):
    changes, words = BAD_ARRAYS[case]
    with pytest.raises(DataError) as error:
        full(**changes)
    for word in words:
        assert word in str(error.value)


BAD_DATASETS = {
    "not a Dataset": (lambda d: d["expression"], ["DataArray", "Dataset"]),
    "no expression": (lambda d: d.rename(expression="expresion"), ["expression is missing", "'expresion'"]),
    "transposed": (lambda d: d.transpose("gene", ...), ["expression", "(gene, cell)", "(cell, gene)", "transpose"]),
    "other dims": (lambda d: d.rename(gene="feature"), ["expression", "(cell, feature)", "(cell, gene)"]),
    "wrong covariates": (lambda d: d.assign(covariates=d["expression"]), ["covariates", "(cell, gene)"]),
    "dim sample": (lambda d: d.rename(covariate="sample"), ["'sample'", "rename"]),
    "variable context": (lambda d: d.assign(context=("cell", np.ones(4))), ["variable", "'context'", "rename"]),
    "dim context": (lambda d: d.assign(extra=("context", np.ones(5))), ["dim", "'context'", "rename"]),
    "bool": (lambda d: d.assign(expression=d["expression"] > 0), ["expression", "bool", "float64"]),
    "objects": (lambda d: d.assign(covariates=d["covariates"].astype(object)), ["covariates", "object"]),
    "float environment": (
        lambda d: d.assign(environment=d["environment"] * 1.0),
        ["environment", "float64", "integer"],
    ),
    "negative environment": (lambda d: d.assign(environment=d["environment"] - 1), ["2 codes", "-1", "'c2'", "0 to 1"]),
    "unknown environment": (lambda d: d.assign(environment=d["environment"] + 1), ["2 codes", "first 2", "'c1'"]),
    "same conditions": (lambda d: d.assign_coords(condition=["a", "a"]), ["condition names", "'a'"]),
    "descriptors": (
        lambda d: d.assign(descriptors=(("condition", "feature"), [[1.0, np.nan], [1, 1]])),
        ["descriptors", "1 NaN", "condition 'a', feature '1'"],
    ),
    "categorical names": (lambda d: d.assign_coords(gene=pd.CategoricalIndex(GENES)), ["gene names", "dtype=str"]),
    "mixed names": (lambda d: d.assign_coords(gene=np.array(["a", 1, 2.5], dtype=object)), ["gene names", "dtype=str"]),
    "float names": (lambda d: d.assign_coords(cell=[0.1, 0.2, 0.3, 0.4]), ["cell names", "float64"]),
}


@pytest.mark.parametrize("case", BAD_DATASETS)
def test_bad_datasets(case):
    change, words = BAD_DATASETS[case]
    with pytest.raises(DataError) as error:
        validate(change(full()))
    for word in words:
        assert word in str(error.value)


def test_good_datasets_pass_unchanged():
    data = full(covariates=np.ones((4, 2)))  # constant covariates are allowed
    copy = data.copy(deep=True)
    assert validate(data) is data
    xr.testing.assert_identical(data, copy)
    validate(data.assign(truth=("edge", [np.nan]), label=("cell", list("abcd"))))  # others ride along
    validate(xr.Dataset({"expression": (("cell", "gene"), np.array([[1, 2], [3, 5]]))}))  # counts, without names
    validate(full(min_cells=4), min_cells=4)
    with pytest.raises(DataError, match="has 4 cells; wanted at least 5"):
        validate(data, min_cells=5)


def test_long_lists_of_names_are_cut():
    with pytest.raises(
        DataError, match="constant in 9 genes: 'gene_0', 'gene_1', 'gene_2', 'gene_3', 'gene_4' and 4 more"
    ):
        from_arrays(np.ones((3, 9)))


# --- splits


def labelled(labels: list[str]) -> xr.Dataset:
    return from_arrays(numbers(len(labels), 2), environment=labels)


def positions(data: xr.Dataset) -> list[int]:
    return [int(name.removeprefix("cell_")) for name in data["cell"].values]


def test_split_takes_every_fourth_cell():
    train, test = split(labelled(["a"] * 10))
    assert positions(test) == [0, 4, 8]
    assert positions(train) == [1, 2, 3, 5, 6, 7, 9]
    assert positions(split(labelled(["a"] * 10), every=3, offset=2)[1]) == [2, 5, 8]


def test_split_counts_within_levels():
    data = labelled(list("abbabbabaa"))  # a: 0 3 6 8 9, b: 1 2 4 5 7
    train, test = split(data, every=2, offset=1, within="environment")
    assert positions(test) == [2, 3, 5, 8]
    assert positions(train) == [0, 1, 4, 6, 7, 9]
    by_text = data.assign(batch=("cell", list("abbabbabaa")))
    assert positions(split(by_text, every=2, offset=1, within="batch")[1]) == [2, 3, 5, 8]


def test_random_split_counts_and_repeats():
    data = labelled(["a"] * 40 + ["b"] * 10)
    train, test = random_split(data, test_fraction=0.3, seed=1, within="environment")
    assert np.bincount(test["environment"]).tolist() == [12, 3]
    assert sorted(positions(train) + positions(test)) == list(range(50))
    assert positions(test) == sorted(positions(test))
    xr.testing.assert_identical(test, random_split(data, test_fraction=0.3, seed=1, within="environment")[1])
    assert positions(test) != positions(random_split(data, test_fraction=0.3, seed=2, within="environment")[1])
    assert random_split(data)[1].sizes["cell"] == 13  # 12.5 rounds up


def test_random_split_draws_all_cells_alike():
    data = labelled(["a"] * 8)
    counts = np.zeros(8)
    for seed in range(400):
        counts[positions(random_split(data, seed=seed)[1])] += 1
    assert counts.sum() == 800
    assert np.abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize("wrong", [{"every": 1}, {"every": 4, "offset": 4}, {"offset": -1}])
def test_bad_split_arguments(wrong):
    with pytest.raises(DataError, match="wanted every >= 2 and 0 <= offset < every"):
        split(labelled(["a"] * 5), **wrong)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, np.nan])
def test_bad_fractions(fraction):
    with pytest.raises(DataError, match="between 0 and 1"):
        random_split(labelled(["a"] * 5), test_fraction=fraction)


def test_bad_splits():
    data = labelled(["a", "b", "a"])
    with pytest.raises(DataError, match=r"within='batch' is no variable over cells; found 'environment', 'cell'$"):
        split(data, within="batch")
    with pytest.raises(DataError, match="within='gene'"):
        split(data, within="gene")
    with pytest.raises(DataError, match="3 training and 0 test"):
        split(data, offset=3)
    with pytest.raises(DataError, match="1 training and 0 test"):
        random_split(data.isel(cell=[0]))
    with pytest.raises(DataError, match="0 training and 1 test"):
        split(data.isel(cell=[0]))
    with pytest.raises(DataError, match="wanted the dim 'cell'"):
        split(xr.Dataset({"x": ("row", [1.0, 2.0])}))
