"""The common profile of counts."""

import numpy as np
import pytest
import xarray as xr

import embergraph as eg


@pytest.fixture
def counts():
    random = np.random.default_rng(0)
    values = random.poisson(random.gamma(2.0, 2.0, (12, 1)) * random.gamma(2.0, 2.0, (1, 15))) + 1
    return xr.Dataset({"expression": (("cell", "gene"), values)}, {"cell": [f"c{i}" for i in range(12)]})


def test_rows_and_columns_have_mean_zero_and_names_stay(counts):
    rest = eg.matrices.remove_profile(counts)
    assert rest["expression"].dims == ("cell", "gene")
    assert rest["cell"].values[3] == "c3"
    for dim in ("cell", "gene"):
        np.testing.assert_allclose(rest["expression"].mean(dim), 0.0, atol=1e-13)


def test_scales_of_the_data_do_not_matter(counts):
    random = np.random.default_rng(1)
    a, b = np.exp(random.normal(0, 3, 12)), np.exp(random.normal(0, 3, 15))
    stretched = counts.assign(expression=counts["expression"] * a[:, None] * b)
    first, second = (eg.matrices.remove_profile(data) for data in (counts, stretched))
    np.testing.assert_allclose(first["expression"], second["expression"], atol=1e-10)
    change = (second["log_row_scale"] - first["log_row_scale"]).values
    np.testing.assert_allclose(change - change.mean(), np.log(a) - np.log(a).mean(), atol=1e-9)


def test_replicates_are_treated_one_by_one(counts):
    both = xr.concat([counts, counts * 3], "replicate")
    rest = eg.matrices.remove_profile(both)
    np.testing.assert_allclose(rest["expression"][1], eg.matrices.remove_profile(counts)["expression"], atol=1e-12)


def test_bad_data_are_refused(counts):
    with pytest.raises(eg.DataError, match="expression"):
        eg.matrices.remove_profile(counts.rename(expression="counts"))
    with pytest.raises(eg.DataError, match="expression"):
        eg.matrices.remove_profile(counts.assign(expression=xr.ones_like(counts["expression"])))
