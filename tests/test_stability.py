"""Stability over seeds: agreement by hand, matching of latents, chance, and fits that cross processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from calibration_cases import NUMBERS, two_means
from pyro.infer.autoguide import AutoNormal

import embergraph as eg
from embergraph._agreement import agreement, table_of
from embergraph.inference.inputs import Template
from embergraph.models.parts.errors import DataError, NumericalError, SchemaError

Y = {"y": ("cell", np.random.default_rng(0).normal(1.0, 1.0, 8))}


class Told(eg.Fit):
    """A fit that says what it is told to."""

    exchangeable = ("latent",)

    def __init__(self, readings: dict[str, xr.Dataset], loss: float = 0.0) -> None:
        self.told, self.settings, self.template = readings, {"final_loss": loss}, Template({})

    def readings(self, data: Any, **options: Any) -> dict[str, xr.Dataset]:
        return self.told


def environments(order: Any, sign: Any, seed: int = 0, noise: float = 0.0) -> dict[str, xr.Dataset]:
    """Targets and shifts of 12 environments in 5 latents, in some order and with some signs."""
    rng = np.random.default_rng(seed)
    target = rng.random((12, 5)) < 0.25
    shift = np.where(target, rng.normal(size=(12, 5)) * 2, 0.0)[:, order] * sign
    shift = shift + noise * np.random.default_rng(seed + 1).normal(size=shift.shape)
    dims = ("condition", "latent")
    ends = {"lower": (dims, shift - 0.1), "upper": (dims, shift + 0.1)}
    names = {"condition": [f"drug{i}" for i in range(12)]}
    p = (dims, np.where(target, 0.9, 0.1)[:, order])
    return {
        "target": xr.Dataset({"estimate": p, "probability": p}, names),
        "shift": xr.Dataset({"estimate": (dims, shift), **ends}, names, {"level": 0.9}),
    }


def test_agreement_by_hand() -> None:
    def one(estimate: Any, half: float) -> Any:
        values = np.array(estimate)
        entry = {"estimate": values, "lower": values - half, "upper": values + half}
        return table_of(xr.Dataset({k: ("entry", v) for k, v in entry.items()}, attrs={"level": 0.9}), 0.5, 0.9)

    first, second = one([2.0, 2.0, -2.0, 0.5, 0.0], 1.0), one([2.0, -2.0, -2.0, 2.0, 0.0], 1.0)
    correlation, sign, call, jaccard = agreement(first, second)
    assert correlation == pytest.approx(np.corrcoef([2, 2, -2, 0.5], [2, -2, -2, 2])[0, 1])
    assert (sign, call, jaccard) == pytest.approx((2 / 3, 3 / 4, 3 / 4))
    assert first.width[0] == pytest.approx(1 / 1.6449, rel=1e-4)
    assert np.isnan(agreement(one([0.0, 0.0], 1.0), one([0.0, 0.0], 1.0))).all()
    p = table_of(xr.Dataset({k: ("entry", [0.9, 0.6, 0.1]) for k in ("estimate", "probability")}), 0.5, 0.9)
    q = table_of(xr.Dataset({k: ("entry", [0.9, 0.4, 0.1]) for k in ("estimate", "probability")}), 0.5, 0.9)
    assert agreement(p, q)[2:] == pytest.approx((2 / 3, 1 / 2))
    assert np.isnan(agreement(p, q)[1])


def test_latents_in_another_order_with_other_signs_are_the_same() -> None:
    signs = np.array([1.0, -1.0, 1.0, -1.0, -1.0])
    fits = [Told(environments(np.arange(5), 1.0)), Told(environments([3, 1, 4, 0, 2], signs))]
    found = eg.stability(fits, NUMBERS)
    for score in ("correlation", "call_agreement", "jaccard"):
        np.testing.assert_allclose(found[f"{score}_mean"], 1.0)
    assert found["sign_agreement_mean"].sel(reading="shift") == 1.0
    assert found["spread_ratio"].sel(reading="shift") == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(found["spread_ratio"].sel(reading="target"))
    fixed = eg.stability(fits, NUMBERS, signed=())
    assert fixed["correlation_mean"].sel(reading="shift") < 0.9


def test_matching_alone_gains_what_chance_says() -> None:
    fits = [Told(environments(np.arange(5), 1.0, seed=s)) for s in range(0, 12, 2)]
    found = eg.stability(fits, NUMBERS, num_permutations=10)
    assert found.sizes["pair"] == 15
    mean, chance = (found[f"correlation_{end}"].sel(reading="shift") for end in ("mean", "chance"))
    assert chance > 0.1, "matching finds likeness where there is none"
    assert abs(float(mean - chance)) < 0.06
    close = eg.stability([Told(environments(np.arange(5), 1.0, noise=0.02)), fits[0]], NUMBERS)
    assert close["correlation_mean"].sel(reading="shift") > 0.99
    assert close["correlation_chance"].sel(reading="shift") < 0.6


def test_diagonals_stay_diagonals() -> None:
    rng = np.random.default_rng(0)
    genes = list("ABCDEFGH")
    W = np.where(rng.random((8, 8)) < 0.3, rng.normal(size=(8, 8)), 0.0)
    np.fill_diagonal(W, 100.0)  # the same in all fits, and so to be seen if rows and columns came apart
    dims, coords = ("regulator", "target"), {"regulator": genes, "target": genes}
    table = {
        "network": xr.Dataset(
            {"estimate": (dims, W), "draws": (("draw", *dims), W + rng.normal(size=(50, 8, 8)))}, coords
        )
    }
    found = eg.stability([Told(table), Told(table)], NUMBERS)
    assert found["correlation_chance"].item() > 0.95


def test_spread_over_fits_beside_the_stated_width() -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, 30))
    fits = [
        Told(
            {"mean": xr.Dataset({"estimate": ("g", 0.6 * c), "draws": (("draw", "g"), rng.normal(size=(4000, 30)))})},
            loss,
        )
        for c, loss in zip(centres, (3.0, np.nan, 1.0, 2.0), strict=True)
    ]
    found = eg.stability(dict(zip("abcd", fits, strict=True)), NUMBERS)
    assert found["spread_ratio"].item() == pytest.approx(0.6 * np.sqrt(centres.var(0, ddof=1).mean()), rel=0.01)
    assert found["pair"].values.tolist()[:2] == ["a, b", "a, c"]
    assert "of the stated width" in eg.stability_text(found)


def test_fits_of_other_processes_answer_as_those_of_this_one(tmp_path: Path) -> None:
    def fit(data: Any, seed: int) -> eg.Fit:
        if seed == 7:
            raise NumericalError("step 2: site 'first' is not finite")
        return eg.svi(two_means, AutoNormal, data, num_steps=30, seed=seed, progress=False)

    state = torch.get_rng_state()
    there = eg.refit(two_means, Y, seeds=[3, 5, 7], fit=fit, n_jobs=2, progress=False)
    here = eg.refit(two_means, Y, seeds=[3, 5, 7], fit=fit, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert list(there) == list(here) == [3, 5]
    for seed, found in there.items():
        a, b = (
            f.posterior(Y, 20, predictive=False, prior=False)["posterior"].to_dataset() for f in (found, here[seed])
        )
        xr.testing.assert_equal(a, b)
    assert there[3].settings["refit"]["failures"] == {"7": "NumericalError: step 2: site 'first' is not finite"}
    found = eg.stability(there, Y, num_samples=50)
    assert found.attrs["num_failures"] == 1
    assert found["reading"].values.tolist() == ["first", "second"]
    found.to_netcdf(tmp_path / "found.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc"), found)
    there[3].save(tmp_path / "fit")


@pytest.mark.parametrize("likelihood", [None, "gaussian"])
def test_fits_of_environments_can_be_sent(likelihood: str | None) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    if likelihood is None:
        data = eg.datasets.simulated_perturbations(
            0, num_perturbations=3, num_cells=20, num_latents=2, num_genes=6, max_targets=1
        )
    else:
        data = eg.datasets.simulated_environments(0, num_latents=2, num_genes=6, num_cells=20)
    fit = eg.fit(eg.models.EnvironmentVAE.for_data(data, 2), data, num_steps=10, progress=False)
    there = cloudpickle.loads(cloudpickle.dumps(fit))
    xr.testing.assert_equal(there.readings(data)["target"], fit.readings(data)["target"])


def test_what_cannot_be_compared_is_refused() -> None:
    one = Told(environments(np.arange(5), 1.0))
    with pytest.raises(DataError, match="found 1; wanted at least two"):
        eg.stability([one], NUMBERS)
    with pytest.raises(DataError, match="threshold"):
        eg.stability([one, one], NUMBERS, threshold=1.5)
    with pytest.raises(SchemaError, match="no reading that all have"):
        eg.stability([one, Told({})], NUMBERS)
    fewer = {name: table.isel(latent=slice(4)) for name, table in environments(np.arange(5), 1.0).items()}
    with pytest.raises(SchemaError, match="reading 'target': found sizes"):
        eg.stability([one, Told(fewer)], NUMBERS)
    with pytest.raises(DataError, match="different ones"):
        eg.refit(two_means, Y, seeds=[1, 1])
    with pytest.raises(SchemaError, match="no plan"):
        eg.refit(two_means, Y)

    def never(data: Any, seed: int) -> Any:
        raise NumericalError("step 1: nothing works")

    with pytest.raises(SchemaError, match="without a parameter 'seed'"):
        eg.refit(two_means, Y, fit=lambda data: never(data, 0))
    with pytest.raises(SchemaError, match="returns NoneType; wanted a Fit"):
        eg.refit(two_means, Y, fit=lambda data, seed: None, progress=False)
    with pytest.raises(DataError, match="n_jobs"):
        eg.refit(two_means, Y, fit=never, n_jobs=0)
    with pytest.raises(DataError, match="found int"):
        eg.stability(3, NUMBERS)

    with pytest.raises(NumericalError, match="nothing works"):
        eg.refit(two_means, Y, fit=never, progress=False)


def fitted(values: Any, seed: int = 0) -> eg.Fit:
    return eg.svi(two_means, AutoNormal, {"y": ("cell", values)}, num_steps=20, seed=seed, progress=False)


def test_fits_of_other_data_and_fits_without_chance_are_told() -> None:
    values = Y["y"][1]
    with pytest.raises(DataError, match="different data"):
        eg.stability([fitted(values), fitted(values + 1.0)], Y)
    same = eg.stability([fitted(values), fitted(values)], Y)
    assert same.attrs["identical"] == 1
    assert "does not depend on its seed" in eg.stability_text(same)
    assert eg.stability([fitted(values), fitted(values, seed=1)], Y).attrs["identical"] == 0
