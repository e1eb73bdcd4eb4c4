"""What a report is made of: laws read off the model, judgements, calibration, numbers that are not defined."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoMultivariateNormal
from report_fits import Page, case, made, words

import embergraph as eg
from embergraph._report.evidence import calibration_warnings
from embergraph.inference.judgement import LIMITS, at_least, at_most, limits_text, verdict_of
from embergraph.inference.readings import of_draws
from embergraph.models.parts.errors import SchemaError


def laws(name: str) -> dict[str, str]:
    data = made(name).to_dataset()
    return dict(zip(data["site"].values.tolist(), data["site_law"].values.tolist(), strict=True))


def test_priors_are_read_off_the_model():
    assert laws("own svi") == {
        "weight": "Beta(concentration1=2, concentration0=2)",
        "spread": "HalfNormal(2)",
        "level": "Normal(0, spread)",
        "gap": "f(level)",
        "offset": "Normal(0, 1)",
        "kind": "Bernoulli(weight)",
        "y_obs": "Normal(f(level, gap, offset, kind), 0.5)",
    }
    assert laws("own mcmc") == laws("own svi")


def test_priors_of_methods():
    found = laws("notmad mean field")
    assert found["edges"] == "SpikeSlab(slab_probability=0.3, slab_scale=0.8, spike_scale=0.05)"
    assert found["encoder_weights"] == "Normal(0, 1), then AffineTransform(0, f(encoder_log_amplitude))"
    assert found["archetypes"] == "f(order, edges)"
    found = laws("med-magma")
    assert found["cell_edges"].startswith("SpikeSlab(slab_probability=f(cell_log_odds), slab_scale=f(cell_slab_prec")
    assert found["log_omega"] == "flat (improper)"
    assert laws("vae em")["size"] == "Normal(0, f(shift_variance))"


def kinds(name: str, column: str = "site_kind") -> dict[str, str]:
    data = made(name).to_dataset()
    return dict(zip(data["site"].values.tolist(), data[column].values.tolist(), strict=True))


def test_kinds_axes_and_what_the_guide_has():
    assert kinds("own svi") == {
        "weight": "latent", "spread": "latent", "level": "latent", "gap": "deterministic", "offset": "latent",
        "kind": "enumerated", "y_obs": "observed",
    }  # fmt: skip
    axes = kinds("own svi", "site_axes")
    assert axes["level"] == "side 2"
    assert axes["kind"] == "cell 40"
    assert axes["y_obs"] == "cell 40, gene 5"
    held = kinds("own svi", "site_posterior")
    assert held["level"] == "Normal, transformed"
    assert held["kind"] == "none of its own"
    assert kinds("own points", "site_posterior")["level"] == "held at one value"
    assert kinds("vae em", "site_posterior")["size"] == "Normal"
    assert kinds("med-magma", "site_posterior")["cell_edges"] == "held at one value"


def test_judgements_follow_their_limits():
    assert set(LIMITS) <= set(eg.inference.diagnostics.MEANING)

    def judged(value: float, limits: Any) -> str:
        return verdict_of(xr.DataArray(value, attrs=limits.attrs()))

    small, large = at_most(1.0, 2.0, "Do."), at_least(0.5, 0.2, "Do.")
    assert [judged(v, small) for v in (-np.inf, 1.0, 1.5, 2.5, np.inf)] == ["good", "good", "look", "bad", "bad"]
    assert [judged(v, large) for v in (1.0, 0.3, 0.1)] == ["good", "look", "bad"]
    assert judged(np.nan, small) == verdict_of(xr.DataArray(1.0)) == ""
    assert limits_text(xr.DataArray(0.0, attrs=small.attrs())) == "good up to 1, bad above 2"
    assert limits_text(xr.DataArray(0.0, attrs=at_least(1, -np.inf, "Do.").attrs())) == "good from 1, else look"
    assert all(limits.advice.endswith(".") for limits in LIMITS.values())


def test_undefined_numbers_are_words():
    fit, data, _ = case("own svi")
    table = fit.report(data, num_samples=30).assign(choice_lead_0=((), np.nan, {"meaning": "'b' could not be fitted"}))
    table["guide_khat"] = table["guide_khat"].copy(data=np.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "report", lambda *_, **__: table)
        report = eg.report(fit, data, num_samples=30, progress=False)
    assert "not defined" in report.text
    assert "infinite" in report.text
    assert report.to_dataset().attrs["not_defined"].split(", ")[-1] == "choice_lead_0"


def regression(x: Any, y: Any) -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(0.3))
    slope = pyro.sample("slope", dist.Laplace(torch.zeros(3), tau[..., None]).to_event(1))
    pyro.factor("push", -slope.abs().sum(-1))
    with pyro.plate("cell", len(y)):
        pyro.sample("y_obs", dist.StudentT(4.0, (x * slope[..., None, :]).sum(-1), 1.0), obs=y)


@functools.cache
def regressed(seed: int) -> tuple[eg.Fit, xr.Dataset]:
    rng = np.random.default_rng(0)
    data = xr.Dataset({"x": (("cell", "feature"), rng.normal(size=(20, 3))), "y": ("cell", rng.normal(size=20))})
    return eg.svi(regression, AutoMultivariateNormal, data, num_steps=20, seed=seed, progress=False), data


def test_own_prior_parents_and_factors_are_named():
    fit, data = regressed(0)
    found = eg.report(fit, data, num_samples=30, progress=False).to_dataset()
    law = dict(zip(found["site"].values.tolist(), found["site_law"].values.tolist(), strict=True))
    assert law == {
        "tau": "HalfCauchy(0.3)",
        "slope": "Laplace(0, tau)",
        "push": "adds f(slope) to the log density",
        "y_obs": "StudentT(df=4, loc=f(slope, x), scale=1)",
    }
    held = dict(zip(found["site"].values.tolist(), found["site_posterior"].values.tolist(), strict=True))
    assert held["slope"] == "MultivariateNormal, transformed"


class Normals:
    """What the mean of ten numbers is known to be, in a width that is right or wrong."""

    def __init__(self, data: xr.Dataset, width: float) -> None:
        self.mean, self.width = float(data["y"].mean()), width

    def readings(self, data: xr.Dataset, *, num_samples: int, level: float, seed: int) -> dict[str, xr.Dataset]:
        draws = self.mean + self.width * np.random.default_rng(seed).normal(size=num_samples) / np.sqrt(10)
        return {"mean": of_draws(xr.DataArray(draws, dims="draw"), level, data["true_mean"], "mean of ten numbers")}


@functools.cache
def calibrated(width: float) -> xr.Dataset:
    def simulate(seed: int) -> xr.Dataset:
        rng = np.random.default_rng(seed)
        mean = rng.normal(scale=100.0)
        return xr.Dataset({"y": ("cell", mean + rng.normal(size=10)), "true_mean": mean})

    def fit(data: xr.Dataset) -> Normals:
        return Normals(data, width)

    return eg.calibrate(
        regression, None, fit=fit, simulate=simulate, num_replicates=60, num_samples=99, n_jobs=1, progress=False
    )


def test_calibration_and_stability_are_told():
    fit, data = regressed(0)
    same = eg.stability([fit, regressed(1)[0]], data, num_permutations=5)
    options = {"num_samples": 30, "progress": False}
    report = eg.report(fit, data, calibration=calibrated(0.3), stability=same, **options)
    assert any(text.startswith("On simulated data, mean is not calibrated: too narrow") for text in report.warnings)
    assert "60 simulated data sets of regression" in report.text
    assert "mean: ranks of the truth among the draws, flat where calibrated" in Page(report.html).text
    assert {"tau", "slope"} <= words(report.text[report.text.index("Agreement over seeds") :])
    assert not calibration_warnings(calibrated(1.0), "regression")
    assert calibration_warnings(calibrated(1.0), "other") == ["The calibration is that of regression, not of other."]
    for name in ("calibration", "stability"):
        with pytest.raises(SchemaError, match=name):
            eg.report(fit, data, **{name: data}, **options)


def test_what_was_not_measured_has_its_command():
    text = made("notmad mean field").text
    assert "eg.calibrate(fit.model, data)" in text
    assert "eg.stability(eg.refit(fit.model, data), data)" in text
    assert "eg.calibrate(model, data, fit=...)" in made("own svi").text
    assert "it wants a model with proper priors" in made("med-magma").text


def test_many_rows_are_checked_on_some():
    rng = np.random.default_rng(0)
    fit, _ = regressed(0)
    many = xr.Dataset({"x": (("cell", "feature"), rng.normal(size=(2500, 3))), "y": ("cell", rng.normal(size=2500))})
    assert "on 2000 of 2500 cells" in " ".join(eg.report(fit, many, num_samples=25, progress=False).text.split())


def test_models_that_numbers_with_names_do_not_survive():
    def model(y: Any) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        if type(y) is not torch.Tensor:
            raise TypeError("plain tensors only")
        with pyro.plate("cell", len(y)):
            pyro.sample("y_obs", dist.Normal(mean, 1.0), obs=y)

    data = {"y": ("cell", np.arange(5.0))}
    fit = eg.svi(model, pyro.infer.autoguide.AutoNormal, data, num_steps=10, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = eg.report(fit, data, num_samples=30, progress=False).to_dataset()
    assert found["site_law"].sel(site="mean") == "Normal(0, 1)"
    assert found["site_law"].sel(site="y_obs") != ""
