"""Calibration: exact posteriors pass, and wrong ones are told how they are wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from calibration_cases import (
    COINS,
    NUMBERS,
    NormalPosterior,
    beta_bernoulli,
    beta_posterior,
    fit_of,
    normal_fit,
    normal_mean,
    two_means,
)
from pyro.infer.autoguide import AutoNormal
from scipy import stats

import embergraph as eg
from embergraph.models.parts.errors import DataError, LoadError, NumericalError, SchemaError

FAST: dict[str, Any] = {"progress": False, "num_samples": 99}


def numbers(seed: int) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    mean = 2 * rng.standard_normal((3, 4))
    return xr.Dataset(
        {"y": (("row", "column"), mean + rng.standard_normal((3, 4))), "true_mean": (("row", "column"), mean)}
    )


class Exact:
    """Posterior of the means of `numbers` with a factor on its width, a shift, and bold or shy probabilities."""

    def __init__(self, width: float = 1.0, shift: float = 0.0, sure: float = 1.0) -> None:
        self.width, self.shift, self.sure = width, shift, sure

    def __call__(self, fit: None, data: xr.Dataset, seed: int) -> dict[str, xr.Dataset]:
        sd = self.width * np.sqrt(0.8)
        mean, truth = 0.8 * data["y"] + self.shift * np.sqrt(0.8), data["true_mean"]
        z = xr.DataArray(np.random.default_rng(seed).standard_normal((99, 3, 4)), dims=("draw", "row", "column"))
        draws = sd * z + mean
        ends = {"lower": mean - stats.norm.ppf(0.9) * sd, "upper": mean + stats.norm.ppf(0.9) * sd}
        p = stats.norm.cdf(self.sure * mean / sd)
        return {
            "draws": xr.Dataset({"draws": draws, "truth": truth}, attrs={"meaning": "means"}),
            "ends": xr.Dataset({**ends, "truth": truth}, attrs={"level": 0.8}),
            "sign": xr.Dataset({"probability": (mean.dims, p), "truth": truth > 0}),
            "one": xr.Dataset({"draws": draws[:, 0, 0], "truth": truth[0, 0]}),
            "untold": xr.Dataset({"draws": draws}),
        }


def calibrated(readings: Exact, seed: int = 0, **options: Any) -> xr.Dataset:
    chosen = FAST | {"fit": lambda data: None, "simulate": numbers, "num_replicates": 120} | options
    return eg.calibrate(None, None, readings=readings, seed=seed, **chosen)  # type: ignore[arg-type]


def test_an_exact_posterior_passes_with_many_seeds() -> None:
    verdicts = np.array([calibrated(Exact(), seed)["verdict"].values for seed in range(4)])
    assert (verdicts == "calibrated").sum() >= verdicts.size - 1
    found = calibrated(Exact(), 9)
    assert found["reading"].values.tolist() == ["draws", "ends", "one", "sign"]
    for mass in (0.5, 0.9):
        own = found.sel(reading="draws", mass=mass)
        assert abs(float(own["coverage"]) - mass) < 4 * float(own["coverage_se"]) < 0.1
    assert found["interval_coverage"].sel(reading="ends") == pytest.approx(0.8, abs=0.05)
    assert found["width_factor"].sel(reading="draws") == pytest.approx(1.0, abs=0.12)
    assert found["entries"].sel(reading="draws") == 12
    assert set(found["within"].values) <= {"inside", "inside, not for sure", ""}


@pytest.mark.parametrize(
    ("wrong", "words", "sign"),
    [
        (Exact(width=0.6), "too narrow", "too sure"),
        (Exact(width=1.8), "too wide", "not sure enough"),
        (Exact(shift=0.7), "shifted", "too high"),
    ],
)
def test_wrong_posteriors_are_told_how_they_are_wrong(wrong: Exact, words: str, sign: str) -> None:
    found = calibrated(wrong)
    assert found["verdict"].sel(reading="draws") == found["verdict"].sel(reading="one") == words
    assert found["verdict"].sel(reading="sign") == sign
    assert found["verdict"].sel(reading="ends") == ("too wide" if words == "too wide" else "too narrow")
    assert found["within"].sel(reading="ends") == "outside"
    np.testing.assert_allclose(found["width_factor"].sel(reading="draws"), 1 / wrong.width, rtol=0.15)
    np.testing.assert_allclose(found["shift"].sel(reading="draws"), -wrong.shift, atol=0.15)


def test_few_replicates_decide_nothing() -> None:
    found = calibrated(Exact(), num_replicates=12)
    assert set(found["verdict"].values) == {"undecided: 12 replicates"}
    one = calibrated(Exact(), num_replicates=1)
    assert set(one["verdict"].values) == {"undecided: 1 replicates"}
    assert "undecided" in eg.calibration_text(one)


def test_conjugate_models_pass_with_the_exact_guide_and_fail_with_a_wrong_noise() -> None:
    right = eg.calibrate(normal_mean, NUMBERS, fit=normal_fit, **FAST | {"num_replicates": 70, "seed": 1})
    assert right["verdict"].item() == "calibrated"
    assert (right["guide_khat"] < 0.5).all()

    def wrong_fit(data: xr.Dataset) -> eg.Fit:
        return fit_of(normal_mean, NormalPosterior(noise=0.5), data)

    wrong = eg.calibrate(normal_mean, NUMBERS, fit=wrong_fit, **FAST | {"num_replicates": 24})
    assert wrong["verdict"].item() == "too narrow"


def coins(seed: int) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    share = rng.beta(2.0, 1.0)
    return xr.Dataset({"y": ("cell", rng.random(6) < share), "true_share": share})


def test_a_bernoulli_model_passes_with_the_exact_posterior_and_fails_with_another_prior() -> None:
    def readings(ones: float, fit: None, data: xr.Dataset, seed: int) -> dict[str, xr.Dataset]:
        successes, failures = int(data["y"].sum()), int((~data["y"]).sum())
        draws = np.random.default_rng(seed).beta(ones + successes, 1.0 + failures, 99)
        return {"share": xr.Dataset({"draws": ("draw", draws), "truth": data["true_share"]})}

    options = FAST | {"fit": lambda data: None, "simulate": coins, "num_replicates": 110}
    for seed in range(2):
        right = eg.calibrate(beta_bernoulli, None, readings=partial(readings, 2.0), seed=seed, **options)
        assert right["verdict"].item() == "calibrated"
        wrong = eg.calibrate(beta_bernoulli, None, readings=partial(readings, 0.1), seed=seed, **options)
        assert wrong["verdict"].item() == "shifted"
        assert wrong["shift"].item() > 0.2
    found = eg.calibrate(
        beta_bernoulli,
        COINS,
        fit=lambda data: fit_of(beta_bernoulli, beta_posterior, data),
        **FAST | {"num_replicates": 10},
    )
    assert found["verdict"].item() == "undecided: 10 replicates"
    assert found["replicate_coverage"].mean() > 0.5


def test_mean_field_on_a_correlated_posterior_is_too_narrow() -> None:
    def fit(data: xr.Dataset) -> eg.Fit:
        return eg.svi(two_means, AutoNormal, data, num_steps=50, learning_rate=0.15, progress=False)

    found = eg.calibrate(two_means, NUMBERS, fit=fit, **FAST | {"num_replicates": 20})
    assert found["verdict"].values.tolist() == ["too narrow", "too narrow"]
    assert (found["guide_khat"] > 0.5).mean() > 0.5


def test_a_model_of_ones_own_with_an_enumerated_site() -> None:
    def groups(y):
        weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
        with pyro.plate("component", 2):
            mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        pyro.deterministic("gap", mean[..., 1] - mean[..., 0])
        with pyro.plate("cell", len(y)):
            z = pyro.sample("z", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
            pyro.sample("y_obs", dist.Normal(torch.where(z > 0, mean[..., 1:2], mean[..., :1]), 1.0), obs=y)

    def fit(data: xr.Dataset, seed: int) -> eg.Fit:
        def guide(model: Any) -> AutoNormal:
            return AutoNormal(pyro.poutine.block(model, hide=["z"]))

        return eg.svi(groups, guide, data, num_steps=30, seed=seed, progress=False)

    found = eg.calibrate(
        groups, {"y": ("cell", np.zeros(30))}, fit=fit, num_samples=19, num_replicates=2, progress=False
    )
    assert {"gap", "mean", "weight"} <= set(found["reading"].values)
    assert found["entries"].sel(reading="mean") == 2
    assert not (found["failure"] != "").any()


def test_failures_are_named_and_not_all_may_fail(tmp_path: Path) -> None:
    def sometimes(data: xr.Dataset) -> Any:
        if float(data["true_mean"][0, 0]) > 1:
            raise NumericalError("step 7: site 'mean' is not finite")
        return None

    found = calibrated(Exact(), fit=sometimes, num_replicates=20, checkpoint=tmp_path)
    failed = [float(numbers_of(0, r)["true_mean"][0, 0]) > 1 for r in range(20)]
    assert (found["failure"] != "").values.tolist() == failed
    assert found.attrs["num_failures"] == sum(failed) > 0
    assert f"replicate {failed.index(True)} failed: NumericalError: step 7" in eg.calibration_text(found)
    xr.testing.assert_identical(calibrated(Exact(), fit=sometimes, num_replicates=20, checkpoint=tmp_path), found)
    with pytest.raises(LoadError, match="seed: found 0 of another run; wanted 1"):
        calibrated(Exact(), 1, fit=sometimes, num_replicates=20, checkpoint=tmp_path)

    def never(data: xr.Dataset) -> Any:
        raise NumericalError("step 1: nothing works")

    with pytest.raises(NumericalError, match="no replicate that could be fitted, the first: .*nothing works"):
        calibrated(Exact(), fit=never, num_replicates=3)


def numbers_of(seed: int, replicate: int) -> xr.Dataset:
    from embergraph._replicates import seeds_of

    return numbers(seeds_of(seed, replicate, 4)[0])


def test_an_interrupted_fit_is_no_replicate() -> None:
    class Half:
        settings = {"interrupted": True}  # noqa: RUF012

    calls = []

    def fit(data: xr.Dataset) -> Any:
        calls.append(1)
        return Half() if len(calls) == 5 else None

    found = calibrated(Exact(), fit=fit, num_replicates=20)
    assert found.attrs["interrupted"] == 1
    assert found.sizes["replicate"] == 4


def test_what_comes_out_is_stored_and_explained(tmp_path: Path) -> None:
    found = calibrated(Exact(), num_replicates=30)
    found.to_netcdf(tmp_path / "found.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc"), found)
    assert all(variable.attrs["meaning"] for variable in found.data_vars.values())
    text = eg.calibration_text(found)
    assert "90 % intervals hold" in text
    assert "80 % intervals hold" in text
    assert "calibration error" in text
    assert "nan" not in text
    more = calibrated(Exact(), num_replicates=31)
    np.testing.assert_array_equal(more["replicate_coverage"][:, :30], found["replicate_coverage"])


def test_bad_options_are_refused_before_any_work() -> None:
    def broken(data: xr.Dataset) -> Any:
        raise AssertionError

    with pytest.raises(SchemaError, match="no plan"):
        eg.calibrate(normal_mean, NUMBERS)
    with pytest.raises(DataError, match="num_steps: an option of a plan"):
        eg.calibrate(normal_mean, NUMBERS, fit=broken, num_steps=3)
    with pytest.raises(DataError, match="num_samples"):
        eg.calibrate(normal_mean, NUMBERS, fit=broken, num_samples=10)
    with pytest.raises(DataError, match="level"):
        eg.calibrate(normal_mean, NUMBERS, fit=broken, level=90)
    with pytest.raises(SchemaError, match="readings: found 'slope'; wanted some of"):
        eg.calibrate(normal_mean, NUMBERS, fit=normal_fit, readings="slope", progress=False)
    with pytest.raises(SchemaError, match="found no truth"):
        eg.calibrate(normal_mean, NUMBERS, fit=normal_fit, simulate=lambda seed: xr.Dataset(NUMBERS), progress=False)
