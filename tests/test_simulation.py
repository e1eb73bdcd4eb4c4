"""Draws from the prior of any model, with the truth beside them."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy import stats

import embergraph as eg
from embergraph.models.parts.errors import SchemaError


def two_groups(x, y):
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    with pyro.plate("component", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    pyro.deterministic("gap", mean[..., 1] - mean[..., 0])
    with pyro.plate("cell", len(y)):
        z = pyro.sample("z", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
        pyro.sample("y_obs", dist.Normal(torch.where(z > 0, mean[..., 1:2], mean[..., :1]) + x, 0.01), obs=y)


DATA = {"x": ("cell", torch.zeros(40)), "y": ("cell", torch.zeros(40))}


def test_data_and_truth_of_a_plain_function_belong_together():
    drawn = eg.simulate(two_groups, DATA, seed=4)
    assert drawn["y"].dims == ("cell",)
    assert (drawn["x"].values == 0).all()  # equal to y before, and yet an input
    mean = drawn["true_mean"].values[drawn["true_z"].values.astype(int)]
    assert np.abs(drawn["y"].values - mean).max() < 0.06
    assert float(drawn["true_gap"]) == pytest.approx(float(drawn["true_mean"][1] - drawn["true_mean"][0]), rel=1e-5)


def test_draws_are_those_of_the_prior():
    drawn = [eg.simulate(two_groups, DATA, seed=s) for s in range(150)]
    weights = [float(d["true_weight"]) for d in drawn]
    means = [float(d["true_mean"][0]) / 3 for d in drawn]
    assert stats.kstest(weights, stats.beta(2, 2).cdf).pvalue > 0.01
    assert stats.kstest(means, stats.norm.cdf).pvalue > 0.01
    assert stats.kstest(means, stats.norm(0, 0.5).cdf).pvalue < 1e-3  # a prior that it is not


def test_same_seed_same_draw_and_nothing_global_changes():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two, other = (eg.simulate(two_groups, DATA, seed=s) for s in (7, 7, 8))
    assert torch.equal(before, torch.get_rng_state())
    xr.testing.assert_identical(one, two)
    assert not np.allclose(one["y"], other["y"])
    assert not dict(pyro.get_param_store())


def test_types_names_and_older_truths():
    def counts(expression):
        rate = pyro.sample("rate", dist.Gamma(torch.full((3,), 2.0), 0.1).to_event(1))
        with pyro.plate("cell", len(expression)):
            pyro.sample("obs", dist.Poisson(rate).to_event(1), obs=expression)

    data = xr.Dataset(
        {"expression": (("cell", "gene"), np.zeros((5, 3), dtype=np.float32)), "true_of_before": ("gene", np.ones(3))},
        {"gene": ["A", "B", "C"]},
    )
    drawn = eg.simulate(counts, data, dims={"rate": ("gene",)})
    assert drawn["true_rate"].dims == ("gene",)
    assert drawn["true_rate"]["gene"].values.tolist() == ["A", "B", "C"]
    assert "true_of_before" not in drawn
    assert drawn["expression"].dtype == np.float32
    assert (drawn["expression"] % 1 == 0).all()


def test_what_cannot_be_drawn_is_refused():
    def logged(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("cell", len(y)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y.log())

    with pytest.raises(SchemaError, match="no observed input"):
        eg.simulate(logged, {"y": ("cell", torch.ones(4))})
    with pytest.raises(SchemaError, match="flat prior"):
        eg.simulate(eg.models.MEDMAGMA(4, 5), eg.datasets.simulated_matrix(4, 5))


@pytest.mark.parametrize("order", ["uniform", "projected"])
@pytest.mark.parametrize("tau", [None, 0.5])
def test_networks_that_follow_from_the_sites_are_those_behind_the_expression(order, tau):
    cells = eg.datasets.simulated_notmad(seed=0, num_cells=60, num_genes=4, num_covariates=2)
    small = {"noise_prior": dist.LogNormal(-9.0, 0.01), "intercept_prior": dist.Normal(0.0, 1e-4)}
    model = eg.models.NOTMAD.for_data(cells, 2, order=order, mixture_scale=tau, **small)
    drawn = eg.simulate(model, cells[["covariates"]].assign_coords(gene=cells["gene"]), seed=2)
    from embergraph.methods._notmad_readings import true_networks

    W = true_networks(model, drawn).fillna(0.0).values
    X = drawn["expression"].values
    residual = X - np.einsum("ia,iab->ib", X, W)  # what is left of the noise, which is next to none
    assert np.abs(residual).max() < 2e-3
    assert np.abs(X).max() < 0.1


def test_true_effects_of_environments_are_means_of_many_cells():
    screen = eg.datasets.simulated_perturbations(
        0, num_perturbations=4, num_cells=3000, num_latents=2, num_genes=8, max_targets=1, control=True
    )
    model = eg.models.EnvironmentVAE.for_data(screen, 2, control="control")
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(3.0)  # an untrained network hardly tells latents apart
    drawn = eg.simulate(model, screen, seed=3)
    sums = drawn[["expression", "library"]].groupby(drawn["environment"]).sum()
    often = (sums["expression"].min("environment") > 1e4).values
    profile = (sums["expression"] / sums["library"]).values[:, often]
    control = screen["condition"].values.tolist().index("control")
    effect = np.log2(profile) - np.log2(profile[control])
    truth = drawn["true_effect"].values[:, often]
    assert often.sum() > 2
    assert truth.std() > 0.5
    assert np.abs(effect - truth).max() < 0.3
    assert np.corrcoef(effect.ravel(), truth.ravel())[0, 1] > 0.99
