"""What a fit answers: predictions and densities of new cells, and what it refuses to answer."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy.stats import norm

import embergraph
from embergraph.inference import Fit, StoredDraws, svi
from embergraph.inference.inputs import Template
from embergraph.models.parts.errors import DataError, SchemaError
from embergraph.models.schema import Input, Schema

RNG = np.random.default_rng(0)
GENES = ["A", "B", "C"]


class Shifts(torch.nn.Module):
    """Gene means with Normal(0, 1) priors, a slope of a covariate, unit noise; a schema of its own."""

    schema = Schema(
        inputs={"covariates": Input(("cell", "covariate")), "expression": Input(("cell", "gene"), observed=True)},
        site_dims={"mean": ("gene",), "expression": ("gene",)},
    )

    def forward(self, covariates, expression=None):
        mean = pyro.sample("mean", dist.Normal(covariates.new_zeros(3), 1.0).to_event(1))
        with pyro.plate("cell", covariates.shape[-2], dim=-1):
            rate = mean + covariates[..., :1]
            return pyro.sample("expression", dist.Normal(rate, 1.0).to_event(1), obs=expression)


def exact_guide(covariates, expression=None):
    """The posterior itself, with the numbers of the training data as parameters; nothing else to learn."""
    loc, scale = pyro.param("loc", torch.tensor(MEAN)), pyro.param("scale", torch.tensor(SD))
    pyro.sample("mean", dist.Normal(loc, scale).to_event(1))


def cells(num, seed, genes=GENES, **attrs):
    rng = np.random.default_rng(seed)
    covariates = rng.normal(size=(num, 1))
    expression = covariates + rng.normal(1.0, 1.0, (num, 3))
    variables = {"covariates": (("cell", "covariate"), covariates), "expression": (("cell", "gene"), expression)}
    return xr.Dataset(variables, {"gene": genes, "cell": [f"c{seed}_{i}" for i in range(num)]}, attrs)


TRAIN = cells(8, 0)
RESIDUAL = (TRAIN["expression"] - TRAIN["covariates"].values).values
MEAN, SD = RESIDUAL.sum(0) / 9, np.full(3, 9**-0.5)


@pytest.fixture(scope="module")
def fit():
    return svi(Shifts(), exact_guide, TRAIN, num_steps=1, learning_rate=1e-12, progress=False)


def test_predictions_of_new_cells_need_no_observations(fit):
    """Predictive distribution N(mean + covariate, 1 + 1/9), for other cells than those of the fit."""
    new = cells(5, 1)
    drawn = fit.predict(new.drop_vars(["expression", "gene"]), 4000)["expression"]
    assert drawn.dims == ("chain", "draw", "cell", "gene")
    assert list(drawn["gene"].values) == GENES  # the fit knows them
    wanted = MEAN + new["covariates"].values
    assert np.abs(drawn.mean(("chain", "draw")) - wanted).max() < 5 * (1 / 4000) ** 0.5
    assert np.abs(drawn.var(("chain", "draw")) - (1 + 1 / 9)).max() < 0.15
    with_lies = new.assign(expression=new["expression"] + 100)
    np.testing.assert_array_equal(fit.predict(with_lies, 50)["expression"], fit.predict(new, 50)["expression"])


def test_log_density_of_new_cells_is_the_closed_form(fit):
    new = cells(6, 2)
    wanted = norm.logpdf(new["expression"] - new["covariates"].values, MEAN, (1 + 1 / 9) ** 0.5).sum(1)
    found = fit.log_density(new, 4000)
    assert found.dims == ("cell",)
    assert list(found["cell"].values) == list(new["cell"].values)
    np.testing.assert_allclose(found, wanted, atol=0.03)
    plugged_in = norm.logpdf(new["expression"] - new["covariates"].values, MEAN, 1.0).sum(1)
    assert np.abs(plugged_in - wanted).max() > 0.09  # which a fit without its uncertainty would find


def test_cell_sites_are_averaged_over_their_prior():
    """y_i = z_i + e_i with z_i ~ N(m, 1): density N(m, 2) of a new cell, not that at the z fitted to another one."""

    def local(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("cell", len(y)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y_obs", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        pyro.sample("mean", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1e-3))
        with pyro.plate("cell", len(y)):
            pyro.sample("z", dist.Normal(y, 0.1))

    train = {"y": ("cell", RNG.normal(size=8))}
    fit = svi(local, guide, train, num_steps=1, learning_rate=1e-12, progress=False)
    for num in (8, 3):
        y = np.linspace(-2, 2, num)
        found = fit.log_density({"y": ("cell", y)}, 20_000)
        np.testing.assert_allclose(found, norm.logpdf(y, 0.3, 2**0.5), atol=0.05)
        drawn = fit.predict({"y": ("cell", y)}, 20_000)["y_obs"]
        assert np.abs(drawn.mean(("chain", "draw")) - 0.3).max() < 5 * (2 / 20_000) ** 0.5
        assert np.abs(drawn.var(("chain", "draw")) - 2).max() < 0.12
    assert set(fit.global_draws(3)) == {"mean"}


def test_a_plain_model_predicts_without_observations_if_it_can():
    def optional(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("cell", len(x)):
            pyro.sample("y_obs", dist.Normal(w * x, 1.0), obs=y)

    def needed(x, y):
        optional(x, y)

    data = {"x": ("cell", np.ones(4)), "y": ("cell", np.ones(4))}
    for model in (optional, needed):
        fit = svi(model, AutoNormal, data, num_steps=2, progress=False)
        assert fit.predict({"x": ("cell", np.ones(2)), "y": ("cell", np.zeros(2))}, 3)["y_obs"].shape == (1, 3, 2)
    with pytest.raises(SchemaError, match="y: the observed variable of the model"):
        fit.predict({"x": ("cell", np.ones(2))}, 3)
    fit = svi(optional, AutoNormal, data, num_steps=2, progress=False)
    assert fit.predict({"x": ("cell", np.ones(2))}, 3)["y_obs"].shape == (1, 3, 2)
    for ask in (fit.posterior, fit.log_density, fit.loo, lambda d: fit.resume(d, 1, progress=False)):
        with pytest.raises(SchemaError, match="y: the observed variable of the model"):
            ask({"x": ("cell", np.ones(4))})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (cells(4, 1, ["A", "B", "X"]), r"expression: found others along 'gene'.*wanted \['A', 'B', 'C'\]"),
        (cells(4, 1, ["A", "C", "B"]), "expression: found another order along 'gene'"),
        (cells(4, 1).isel(gene=[0, 1]), "expression: found 2 along 'gene'; wanted 3"),
        (cells(4, 1, standardized="gene"), "standardized='gene'; wanted None"),
        (cells(4, 1).drop_vars("covariates"), "covariates: an input of the model"),
        (cells(4, 1).drop_vars("expression"), "expression: the observed variable of the model"),
        (cells(4, 1).rename(expression="expresion"), "expression: the observed variable.*'expresion'"),
        (cells(4, 1).rename(cell="spot"), r"found dims \('spot', 'covariate'\)"),
        (cells(4, 1).transpose("gene", "covariate", "cell"), "covariates: found dims"),
    ],
)
def test_data_of_another_kind_are_refused(fit, data, message):
    for ask in (fit.posterior, fit.log_density, fit.report, fit.loo):
        with pytest.raises(SchemaError, match=message):
            ask(data)
    observed_alone = "expression: the" in message
    if not observed_alone and "'gene'" not in message:
        with pytest.raises(SchemaError):
            fit.predict(data)


def test_a_misspelt_observation_never_becomes_a_latent():
    for data in (TRAIN.drop_vars("expression"), TRAIN.rename(expression="expresion")):
        with pytest.raises(SchemaError, match="expression: the observed variable"):
            svi(Shifts(), AutoNormal, data, num_steps=1, progress=False)


def test_another_standardisation_is_refused():
    data, standardizer = embergraph.standardize(TRAIN)
    fit = svi(Shifts(), AutoNormal, data, num_steps=1, progress=False)
    new = cells(10, 5)
    fit.log_density(standardizer.apply(new), 5)
    with pytest.raises(SchemaError, match="standardized=None; wanted 'common'"):
        fit.log_density(new, 5)
    with pytest.raises(SchemaError, match="expression_center: found another standardisation"):
        fit.log_density(embergraph.standardize(new)[0], 5)


def test_data_come_in_the_precision_of_the_fit(fit):
    single = cells(4, 1).astype(np.float32)
    assert fit.posterior(single, 3)["posterior_predictive"]["expression"].dtype == np.float64
    assert fit.log_density(single, 50).values == pytest.approx(fit.log_density(cells(4, 1), 50).values, abs=1e-5)


def test_without_a_plate_there_is_no_density_of_a_cell():
    def flat(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y_obs", dist.Normal(mean, 1.0).expand(y.shape).to_event(1), obs=y)

    fit = svi(flat, AutoNormal, {"y": ("cell", np.ones(4))}, num_steps=1, progress=False)
    assert fit.posterior({"y": ("cell", np.ones(4))}, 2)["log_likelihood"]["y_obs"].dims == ("chain", "draw")
    with pytest.raises(SchemaError, match=r"y_obs: found plates \(\); wanted one named 'cell'"):
        fit.log_density({"y": ("cell", np.ones(4))})


def test_point_estimates_and_their_report():
    fit = svi(Shifts(), AutoDelta, TRAIN, num_steps=300, learning_rate=0.05, progress=False)
    table = fit.report(TRAIN, cells(9, 3))
    assert table.attrs["point_estimate"] == 1
    assert "guide_khat" not in table
    assert "elpd_loo" not in table
    assert fit.predict(TRAIN, 5)["expression"].shape == (1, 5, 8, 3)
    np.testing.assert_allclose(fit.global_draws(1)["mean"].squeeze(), MEAN, atol=0.01)


def test_stored_draws():
    template = Template.of(Shifts.schema, TRAIN)
    values = torch.randn(2, 50, 1, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    draws = StoredDraws({"mean": values}, {"acceptance": np.arange(100.0).reshape(2, 50)})
    fit = Fit(Shifts(), None, Shifts.schema, template, draws=draws, settings={"routine": "mine"})
    assert repr(fit) == "Fit(Shifts, 2 x 50 draws, mine)"
    tree = fit.posterior(TRAIN, 10)
    assert tree["posterior"]["mean"].dims == ("chain", "draw", "gene")
    np.testing.assert_array_equal(tree["posterior"]["mean"], values[:, [0, 12, 24, 37, 49], 0])
    np.testing.assert_array_equal(tree["sample_stats"]["acceptance"][1], [50, 62, 74, 87, 99])
    assert "log_q" not in tree["sample_stats"]
    assert fit.posterior(TRAIN, 1000)["posterior"].sizes["draw"] == 50  # never more than there are
    scored = norm.logpdf(RESIDUAL[2], values[0, 12, 0].numpy()).sum()
    assert float(tree["log_likelihood"]["expression"][0, 1, 2]) == pytest.approx(scored)
    assert fit.log_density(cells(4, 1), 20).shape == (4,)
    with pytest.raises(SchemaError, match="either a guide or stored draws"):
        Fit(Shifts(), None, Shifts.schema, template)


def test_device_and_empty_data(fit):
    assert fit.device == torch.device("cpu")
    with pytest.raises(DataError, match="empty"):
        fit.predict(cells(0, 1))
    bad = cells(4, 1)
    bad["covariates"][1] = np.nan
    with pytest.raises(DataError, match="covariates: found 1 values that are NaN"):
        fit.predict(bad)
