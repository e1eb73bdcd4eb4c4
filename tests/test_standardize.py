"""Standardisation: exact statistics, exact inverse, and networks that mean the same on both scales."""

import json

import numpy as np
import pytest
import xarray as xr

from embergraph.data import Standardizer, from_arrays, split, standardize
from embergraph.models.parts.errors import DataError

GENES = ["Raf", "Mek", "Erk", "Akt"]


def raw(num_cells: int = 60, dtype: type = float, seed: int = 0) -> xr.Dataset:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(4, 4))
    values = generator.normal(size=(num_cells, 4)) @ mixing * [0.1, 1, 7, 40] + [5, -3, 0, 100]
    return from_arrays(values.astype(dtype), generator.normal(size=(num_cells, 2)), gene_names=GENES)


def network(data: xr.Dataset) -> np.ndarray:
    """Regression coefficients of Akt on the other genes, as the last column of a network."""
    x = data["expression"].values
    design = np.column_stack([x[:, :3], np.ones(len(x))])
    coefficients = np.linalg.lstsq(design, x[:, 3], rcond=None)[0]
    result = np.zeros((4, 4))
    result[:3, 3] = coefficients[:3]
    return result


def as_network(values: np.ndarray, *extra: str) -> xr.DataArray:
    return xr.DataArray(values, dims=(*extra, "regulator", "target"), coords={"regulator": GENES, "target": GENES})


@pytest.mark.parametrize("scale", ["common", "gene"])
def test_statistics(scale):
    data = raw()
    done, standardizer = standardize(data, scale=scale)
    x, z = data["expression"].values, done["expression"].values
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    if scale == "gene":
        np.testing.assert_allclose(z.var(axis=0), 1)
        np.testing.assert_allclose(standardizer.scale, x.std(axis=0))
    else:
        np.testing.assert_allclose(z.var(axis=0).mean(), 1)
        np.testing.assert_allclose(z.var(axis=0) / z.var(axis=0)[0], x.var(axis=0) / x.var(axis=0)[0])
        np.testing.assert_allclose(standardizer.scale, np.sqrt(x.var(axis=0).mean()))
    np.testing.assert_allclose(standardizer.center, x.mean(axis=0))
    assert standardizer.genes == tuple(GENES)
    xr.testing.assert_identical(done["covariates"], data["covariates"])
    assert "standardized" not in data.attrs
    assert done.attrs["standardized"] == scale


def test_common_is_the_default():
    assert standardize(raw())[1].kind == "common"


@pytest.mark.parametrize("scale", ["common", "gene"])
def test_invert_returns_the_data(scale):
    data = raw().assign_attrs(title="t")
    done, standardizer = standardize(data, scale=scale)
    back = standardizer.invert(done)
    xr.testing.assert_allclose(back, data, rtol=1e-14, atol=1e-13)
    assert set(back.variables) == set(data.variables)
    assert back.attrs == {"title": "t"}
    xr.testing.assert_identical(standardizer.apply(data), done)


def test_float32_stays_and_counts_become_floats():
    done, standardizer = standardize(raw(dtype=np.float32))
    assert done["expression"].dtype == np.float32
    assert standardizer.invert(done)["expression"].dtype == np.float32
    assert standardizer.scale.dtype == np.float64
    counts = raw().assign(expression=raw()["expression"].round().astype(int))
    done, standardizer = standardize(counts)
    assert done["expression"].dtype == np.float64
    np.testing.assert_allclose(standardizer.invert(done)["expression"], counts["expression"], atol=1e-12)


def test_new_cells_use_the_training_statistics():
    train, test = split(raw())
    _, standardizer = standardize(train, scale="gene")
    expected = (test["expression"].values - train["expression"].values.mean(0)) / train["expression"].values.std(0)
    np.testing.assert_allclose(standardizer.apply(test)["expression"], expected)
    one = standardizer.apply(test.isel(cell=[3]))
    np.testing.assert_allclose(one["expression"], expected[[3]])


def test_transform_rides_along(tmp_path):
    done, standardizer = standardize(raw(), scale="gene")
    done.isel(cell=slice(5)).to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "data.nc", engine="h5netcdf") as stored:
        rebuilt = Standardizer.of(stored.load())
    assert (rebuilt.kind, rebuilt.genes) == ("gene", tuple(GENES))
    np.testing.assert_array_equal(rebuilt.center, standardizer.center)
    np.testing.assert_array_equal(rebuilt.scale, standardizer.scale)
    fewer = Standardizer.of(done.sel(gene=["Erk", "Raf"]))
    assert fewer.genes == ("Erk", "Raf")
    np.testing.assert_array_equal(fewer.scale, standardizer.scale[[2, 0]])
    np.testing.assert_allclose(
        fewer.invert(done.sel(gene=["Erk", "Raf"]))["expression"], raw()["expression"][:, [2, 0]]
    )


@pytest.mark.parametrize("scale", ["common", "gene"])
def test_dictionary_is_exact(scale):
    _, standardizer = standardize(raw(), scale=scale)
    back = Standardizer.from_dict(json.loads(json.dumps(standardizer.to_dict())))
    assert (back.kind, back.genes) == (standardizer.kind, standardizer.genes)
    np.testing.assert_array_equal(back.center, standardizer.center)
    np.testing.assert_array_equal(back.scale, standardizer.scale)


@pytest.mark.parametrize("scale", ["common", "gene"])
def test_networks_agree_with_regressions_on_both_scales(scale):
    data = raw()
    done, standardizer = standardize(data, scale=scale)
    on_original, on_standardized = network(data), network(done)
    np.testing.assert_allclose(standardizer.networks_to_original(as_network(on_standardized)), on_original, rtol=1e-9)
    np.testing.assert_allclose(standardizer.networks_from_original(as_network(on_original)), on_standardized, rtol=1e-9)
    if scale == "gene":  # the check has power: without the scales the two differ by far
        assert np.abs(on_original / np.where(on_standardized == 0, np.inf, on_standardized)).max() > 5
    else:
        np.testing.assert_array_equal(standardizer.networks_to_original(as_network(on_standardized)), on_standardized)


def test_residuals_scale_with_their_target():
    generator = np.random.default_rng(3)
    data = raw()
    done, standardizer = standardize(data, scale="gene")
    weights = as_network(generator.normal(size=(4, 4)) * (1 - np.eye(4)))
    original = standardizer.networks_to_original(weights).values
    z = done["expression"].values
    x = data["expression"].values - standardizer.center
    np.testing.assert_allclose(x - x @ original, (z - z @ weights.values) * standardizer.scale, atol=1e-10)


def test_networks_are_aligned_by_name_in_any_layout():
    _, standardizer = standardize(raw(), scale="gene")
    values = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)
    networks = as_network(values, "draw").rename("networks").assign_attrs(note="n")
    expected = standardizer.networks_to_original(networks)
    ratio = standardizer.scale[None, :] / standardizer.scale[:, None]
    np.testing.assert_allclose(expected, values * ratio, rtol=1e-6)
    assert (expected.dtype, expected.name, expected.attrs) == (np.float32, "networks", {"note": "n"})
    xr.testing.assert_allclose(standardizer.networks_from_original(expected), networks)
    part = networks.sel(regulator=["Akt", "Raf"], target=["Erk", "Raf", "Mek"]).transpose("target", "draw", "regulator")
    found = standardizer.networks_to_original(part)
    assert found.dims == ("target", "draw", "regulator")
    xr.testing.assert_identical(
        found, expected.sel(regulator=["Akt", "Raf"], target=["Erk", "Raf", "Mek"]).transpose(*found.dims)
    )
    xr.testing.assert_identical(networks, as_network(values, "draw").rename("networks").assign_attrs(note="n"))


def test_standardizer_cannot_be_changed():
    center = np.zeros(2)
    standardizer = Standardizer("gene", ("a", "b"), center, np.ones(2))
    center[0] = 9
    assert standardizer.center[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        standardizer.scale[0] = 2
    done, standardizer = standardize(raw())
    done["expression_scale"].values[0] = 7  # data are the caller's own
    assert standardizer.scale[0] != 7


BAD = {
    "twice": (lambda d, z, s: standardize(z), "already standardised \\(by gene\\)"),
    "apply twice": (lambda d, z, s: s.apply(z), "already standardised \\(by gene\\)"),
    "kind": (lambda d, z, s: standardize(d, scale="cell"), "scale is 'cell'; wanted one of 'common', 'gene'"),
    "NaN": (lambda d, z, s: s.apply(d.assign(expression=d["expression"].where(d["expression"] > 0))), "NaN"),
    "constant": (lambda d, z, s: standardize(d.assign(expression=d["expression"] * [1, 0, 1, 1])), "constant.*'Mek'"),
    "other genes": (lambda d, z, s: s.apply(d.isel(gene=[0, 1, 2])), "missing 'Akt', unknown nothing"),
    "new genes": (lambda d, z, s: s.apply(d.assign_coords(gene=["Raf", "Mek", "Erk", "X"])), "'Akt', unknown 'X'"),
    "gene order": (lambda d, z, s: s.apply(d.isel(gene=[1, 0, 2, 3])), "another order"),
    "invert raw": (lambda d, z, s: s.invert(d), "not standardised: they lack 'expression_center'"),
    "of raw": (lambda d, z, s: Standardizer.of(d), "not standardised"),
    "lost attribute": (lambda d, z, s: Standardizer.of(z.drop_attrs()), "lack the attribute 'standardized'"),
    "invert others": (lambda d, z, s: s.invert(standardize(d)[0]), "another transform"),
    "no dim": (lambda d, z, s: s.networks_to_original(as_network(np.eye(4)).rename(target="gene")), "'target'"),
    "no names": (
        lambda d, z, s: s.networks_to_original(xr.DataArray(np.eye(4), dims=("regulator", "target"))),
        "dim 'regulator' with names of genes",
    ),
    "unknown gene": (
        lambda d, z, s: s.networks_from_original(
            as_network(np.eye(4)).assign_coords(target=["Raf", "Mek", "Erk", "X"])
        ),
        "target unknown to the standardizer: 'X'",
    ),
    "entry": (lambda d, z, s: Standardizer.from_dict({"kind": "gene", "genes": ["a"]}), "lacks 'center', 'scale'"),
    "length": (lambda d, z, s: Standardizer("gene", ("a", "b"), np.zeros(3), np.ones(2)), "center.*wanted 2"),
    "not finite": (lambda d, z, s: Standardizer("gene", ("a",), np.zeros(1), np.array([np.inf])), "finite"),
    "not positive": (lambda d, z, s: Standardizer("gene", ("a", "b"), np.zeros(2), np.array([1, 0])), "'b'"),
    "unknown kind": (lambda d, z, s: Standardizer("own", ("a",), np.zeros(1), np.ones(1)), "kind is 'own'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    act, message = BAD[case]
    with pytest.raises(DataError, match=message):
        act(raw(), *standardize(raw(), scale="gene"))
