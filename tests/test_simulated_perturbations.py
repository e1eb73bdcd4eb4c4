"""The simulator of counts under perturbations: targets, libraries, normalisations, truth."""

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LinearRegression

from embergraph.data import validate
from embergraph.datasets import simulated_perturbations
from embergraph.models.parts.errors import DataError


@pytest.mark.parametrize("seed", range(3))
def test_targets_and_shifts(seed: int) -> None:
    data = simulated_perturbations(seed, num_perturbations=600, num_cells=1)
    targets, shift = data["true_targets"].values, data["true_shift"].values
    number = targets.sum(1)
    # 1, 2 or 3 with probability 1/3 each: a target drawn twice would make the mean 1.91.
    assert np.unique(number).tolist() == [1, 2, 3]
    np.testing.assert_allclose(np.bincount(number)[1:] / 600, 1 / 3, atol=0.06)
    np.testing.assert_allclose(targets.mean(0), 2 / 15, atol=0.05)
    np.testing.assert_array_equal(shift != 0, targets)
    size = np.abs(shift[targets])
    assert size.mean() == pytest.approx(5, abs=0.06)
    assert size.std() == pytest.approx(0.5, abs=0.04)
    assert (shift[targets] > 0).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("number", [1, 3, 8])
def test_no_target_is_drawn_twice(number: int) -> None:
    sizes = {"num_perturbations": 50, "num_latents": 8, "num_cells": 1}
    data = simulated_perturbations(0, min_targets=number, max_targets=number, **sizes)
    assert (data["true_targets"].sum("true_latent") == number).all()


def test_latents_have_unit_variance_around_the_shift() -> None:
    data = simulated_perturbations(1)
    noise = data["true_z"].values - data["true_shift"].values[data["environment"].values]
    assert abs(noise.mean()) < 0.01
    np.testing.assert_allclose(noise.std(0), 1, atol=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_libraries_of_both_normalisations(seed: int) -> None:
    cells = simulated_perturbations(seed, normalise="cells")
    genes = simulated_perturbations(seed, normalise="genes")
    for data in (cells, genes):
        counts = data["expression"].values
        np.testing.assert_array_equal(counts, np.round(counts))
        np.testing.assert_array_equal(data["library"], counts.sum(1))
        assert data["library"].mean() == pytest.approx(4000, rel=0.01)
        validate(data)
    # Over genes only Poisson noise is left in the total; over cells every gene has the same total instead.
    assert genes["library"].std() == pytest.approx(np.sqrt(4000), rel=0.05)
    assert cells["library"].std() > 400
    totals = cells["expression"].sum("cell").values
    np.testing.assert_allclose(totals, 4000 * 10000 / 100, rtol=0.01)
    assert genes["expression"].sum("cell").values.std() > 0.1 * totals.mean()
    for name in ("true_z", "true_targets", "true_shift"):
        xr.testing.assert_equal(cells[name], genes[name])


def test_counts_of_the_linear_decoder_are_poisson_around_its_softmax() -> None:
    data = simulated_perturbations(2, decoder="linear", num_perturbations=40)
    logits = (data["true_z"] @ data["true_mixing"]).values
    assert logits.std() == pytest.approx(1)
    mean = 4000 * np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    z = (data["expression"].values - mean) / np.sqrt(mean)
    assert abs(z.mean()) < 0.01
    assert z.std() == pytest.approx(1, abs=0.01)


def test_network_bends_the_latent_axes() -> None:
    # A linear fit to log counts explains 99 % of the latents behind one layer and 84 % behind four.
    found = {}
    for decoder in ("linear", "mlp"):
        data = simulated_perturbations(0, decoder=decoder)
        logs, z = np.log1p(data["expression"].values), data["true_z"].values
        found[decoder] = LinearRegression().fit(logs, z).score(logs, z)
    assert found["linear"] > 0.98
    assert 0.80 < found["mlp"] < 0.87
    assert "true_mixing" not in simulated_perturbations(0, num_perturbations=2, num_cells=2)


def test_control_comes_first_and_is_not_shifted() -> None:
    data = simulated_perturbations(0, num_perturbations=4, num_cells=30, control=50)
    assert data["condition"].values.tolist() == ["control", *(f"perturbation_{a}" for a in range(4))]
    np.testing.assert_array_equal(np.bincount(data["environment"]), [50, 30, 30, 30, 30])
    assert not data["true_shift"].values[0].any()
    assert not data["true_targets"].values[0].any()
    none = simulated_perturbations(0, num_perturbations=4, num_cells=30)
    np.testing.assert_array_equal(none["true_shift"], data["true_shift"].values[1:])
    equal = simulated_perturbations(0, num_perturbations=4, num_cells=30, control=True)
    assert (equal["environment"] == 0).sum() == 30
    assert equal.attrs["control"] == 30


def test_same_seed_same_data(tmp_path) -> None:
    sizes = {"num_perturbations": 5, "num_cells": 10}
    data = simulated_perturbations(7, **sizes)
    xr.testing.assert_identical(data, simulated_perturbations(7, **sizes))
    assert not np.allclose(data["expression"], simulated_perturbations(8, **sizes)["expression"])
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    assert xr.load_dataset(tmp_path / "data.nc", engine="h5netcdf")["library"].equals(data["library"])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_perturbations", 0),
        ("num_cells", 0),
        ("num_genes", 1),
        ("min_targets", -1),
        ("min_targets", 4),
        ("max_targets", 16),
        ("normalise", "counts"),
        ("decoder", "cubic"),
        ("library_size", 10.0),
        ("control", -1),
    ],
)
def test_refuses_settings_out_of_range(setting: str, value: object) -> None:
    with pytest.raises(DataError, match=setting):
        simulated_perturbations(**{setting: value})
