"""Posteriors of NOTMAD against known ones: exact conditionals, NUTS, and the ELBO of the guide."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine

import embergraph as eg
from embergraph.guides import NOTMADGuide
from embergraph.inference.density import LogDensity
from embergraph.inference.export import guide_pass
from embergraph.inference.hmc import negative_hessian, whitened_hmc, whitening
from embergraph.inference.messengers import isolated
from embergraph.models import NOTMAD

K, P = 2, 3
ORDER = [1, 0, 2]


def cells(num_cells: int = 120, seed: int = 0) -> xr.Dataset:
    """Cells from the model itself: 1 -> 0 -> 2 with effects that turn with the covariate."""
    rng = np.random.default_rng(seed)
    C = rng.uniform(-1, 1, (num_cells, 1))
    z = 1 / (1 + np.exp(-3 * C[:, 0]))
    X = rng.normal(size=(num_cells, P))
    X[:, 0] += (1.2 * z - 0.8 * (1 - z)) * X[:, 1]
    X[:, 2] += 0.9 * z * X[:, 0]
    return eg.standardize(eg.from_arrays(X, C))[0]


def inputs_of(data: xr.Dataset) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(data[name].values) for name in ("covariates", "expression")}


def exact_conditional(
    X: np.ndarray, Z: np.ndarray, sigma: float, edge_sd: float
) -> tuple[dict[tuple[int, int], np.ndarray], dict[tuple[int, int], np.ndarray]]:
    """Means and sds of the effects a -> b of each archetype: one Bayesian regression a target, by dense algebra."""
    means, sds = {}, {}
    for place, b in enumerate(ORDER):
        before = ORDER[:place]
        F = np.concatenate([Z * X[:, [a]] for a in before] + [Z], 1)
        prior = np.array([edge_sd] * (K * len(before)) + [1.0] * K)
        precision = F.T @ F / sigma**2 + np.diag(prior**-2)
        mean = np.linalg.solve(precision, F.T @ X[:, b] / sigma**2)
        sd = np.sqrt(np.diag(np.linalg.inv(precision)))
        for i, a in enumerate(before):
            means[a, b], sds[a, b] = mean[K * i : K * (i + 1)], sd[K * i : K * (i + 1)]
    return means, sds


@pytest.mark.parametrize("given_order", [True, False])
def test_hmc_given_mixture_and_noise_is_the_exact_gaussian(given_order: bool) -> None:
    data = cells()
    inputs = inputs_of(data)
    order = ORDER if given_order else "uniform"
    model = NOTMAD.for_data(data, K, order=order, edge_prior=dist.Normal(0.0, 0.5)).double()
    weights = {
        "encoder_weights": torch.randn(len(model.encoder.feature_names), K, dtype=torch.double),
        "encoder_bias": torch.zeros(K, dtype=torch.double),
    }
    sigma = torch.tensor(0.7, dtype=torch.double)
    Z = model.encoder(inputs["covariates"], weights).softmax(-1)
    fixed = {**weights, "encoder_log_amplitude": torch.zeros((), dtype=torch.double), "sigma": sigma}
    if not given_order:
        fixed["order"] = torch.tensor(ORDER)
    density = LogDensity(model, inputs, fixed)
    with isolated(0):
        start = torch.zeros(8, density.num_dims, dtype=torch.double)
        roots = whitening(negative_hessian(density, start))
        chains = whitened_hmc(density, start, roots, num_warmup=40, num_draws=300, num_leapfrog=4, progress=False)
    edges = density.unpack(chains.draws.flatten(0, 1))["edges"]
    W = model.archetypes_of({"edges": edges, "order": torch.tensor(ORDER)})
    means, sds = exact_conditional(inputs["expression"].numpy(), Z.numpy(), 0.7, 0.5)
    for (a, b), mean in means.items():
        drawn = W[:, :, a, b]
        # 2400 draws, autocorrelated: a tenth of an sd is over three Monte-Carlo errors at 1000 effective draws
        np.testing.assert_array_less(np.abs(drawn.mean(0).numpy() - mean), 0.1 * sds[a, b])
        np.testing.assert_allclose(drawn.std(0).numpy(), sds[a, b], rtol=0.1)
    wrong, _ = exact_conditional(inputs["expression"].numpy(), Z.numpy(), 0.7, 0.05)
    gap = max(np.abs(W[:, :, a, b].mean(0).numpy() - wrong[a, b]).max() / sds[a, b].max() for a, b in wrong)
    assert gap > 1, "the check must tell one prior from another"


def test_nuts_agrees_with_the_plan() -> None:
    """Same model of one given order by Pyro's NUTS and by the plan; compared on what users read, the networks."""
    data = cells(80)
    model = NOTMAD.for_data(data, K, encoder="linear", order=ORDER, edge_prior=dist.Normal(0.0, 0.8))
    planned = eg.fit(
        model, data, posterior="hmc", num_orders=4, num_steps=200, num_warmup=80, num_draws=150, progress=False
    )
    nuts = eg.mcmc(model, data, num_warmup=80, num_draws=120, max_tree_depth=5, progress=False, fit_class=eg.NOTMADFit)
    grid = np.linspace(-0.9, 0.9, 7)[:, None]
    one = planned.networks(grid, num_samples=600)
    two = nuts.networks(grid, num_samples=120)
    width = (two["upper"] - two["lower"]).values
    allowed = width > 0
    assert (allowed == ((one["upper"] - one["lower"]).values > 0)).all()
    assert allowed[0].sum() == 3
    for name in ("network", "lower", "upper"):
        gap = np.abs(one[name].values - two[name].values)[allowed] / width[allowed]
        assert gap.max() < 0.25, f"{name} differs by {gap.max():.2f} interval widths"
    assert one.attrs["share_acyclic"] == two.attrs["share_acyclic"] == 1.0


def mixture_guide(model: NOTMAD, orders: list[list[int]], seed: int = 0) -> NOTMADGuide:
    generator = torch.Generator().manual_seed(seed)
    M, E, F = len(orders), P * (P - 1) // 2, len(model.encoder.feature_names)
    shapes = {"edges": (K, E), "intercepts": (K, P), "encoder_weights": (F, K), "encoder_bias": (K,)}
    values = {n: torch.randn(M, *s, generator=generator, dtype=torch.double) for n, s in shapes.items()}
    values["sigma"] = 0.5 + torch.rand(M, generator=generator, dtype=torch.double)
    values["encoder_log_amplitude"] = 0.1 * torch.randn(M, generator=generator, dtype=torch.double)
    weights = torch.tensor([0.7, 0.3], dtype=torch.double)[:M]
    return NOTMADGuide.around(model, torch.tensor(orders), weights, values)


def test_objective_of_the_guide_is_its_negative_elbo() -> None:
    data = cells(40)
    inputs = inputs_of(data)
    model = NOTMAD.for_data(data, K).double()
    guide = mixture_guide(model, [[0, 1, 2], [2, 1, 0]])
    with isolated(1), torch.no_grad():
        result = guide_pass(model, guide, inputs, 4000)
        difference = result.log_q - result.log_p
        exact = torch.stack([guide.objective(model, inputs) for _ in range(300)])
    error = float(difference.std()) / 4000**0.5 + float(exact.std()) / 300**0.5
    assert abs(float(difference.mean() - exact.mean())) < 4 * error
    assert exact.std() < difference.std(), "summing over orders and pairing draws must reduce the variance"


def test_density_of_the_guide_by_hand() -> None:
    data = cells(40)
    inputs = inputs_of(data)
    model = NOTMAD.for_data(data, K).double()
    guide = mixture_guide(model, [[0, 1, 2], [2, 1, 0]])
    with isolated(2):
        trace = poutine.trace(guide).get_trace(**inputs)
    v = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample"}
    m = [[0, 1, 2], [2, 1, 0]].index(v["order"].tolist())
    total = torch.log(guide.weights[m])
    for name in guide.supports:
        loc, scale = getattr(guide.loc, name)[m], getattr(guide.scale, name)[m]
        family = dist.LogNormal if name == "sigma" else dist.Normal
        total = total + family(loc, scale).log_prob(v[name]).sum()
    torch.testing.assert_close(trace.log_prob_sum(), total)


def test_training_the_guide_finds_the_exact_posterior_of_a_conjugate_case() -> None:
    """With the encoder and the noise pinned by tight priors, edges have a Gaussian posterior that mean field knows."""
    data = cells(150)
    inputs = inputs_of(data)
    model = NOTMAD.for_data(
        data, 1, encoder="linear", order=ORDER, edge_prior=dist.Normal(0.0, 0.5), noise_prior=dist.LogNormal(-0.2, 1e-3)
    )
    start = {
        "edges": torch.zeros(1, 1, 3), "intercepts": torch.zeros(1, 1, P), "sigma": torch.full((1,), 0.8187),
        "encoder_weights": torch.zeros(1, 1, 1), "encoder_bias": torch.zeros(1, 1),
        "encoder_log_amplitude": torch.zeros(1),
    }  # fmt: skip
    guide = NOTMADGuide.around(model, torch.tensor([ORDER]), torch.ones(1), start)
    fit = eg.svi(model, guide, data, num_steps=800, learning_rate={"*scale*": 2e-2, "*": 5e-3}, progress=False)
    draws = fit.posterior(data, 4000, predictive=False, prior=False)["posterior"]["archetypes"]
    X = inputs["expression"].numpy()
    # mean field of a Gaussian: right means, and variances 1 / diagonal of the precision
    for place, b in enumerate(ORDER):
        F = np.concatenate([X[:, ORDER[:place]], np.ones((len(X), 1))], 1)
        precision = F.T @ F / 0.8187**2 + np.diag([0.5**-2] * place + [1.0])
        mean = np.linalg.solve(precision, F.T @ X[:, b] / 0.8187**2)
        for i, a in enumerate(ORDER[:place]):
            drawn = draws.isel(chain=0, archetype=0, regulator=a, target=b)
            sd = precision[i, i] ** -0.5
            assert abs(float(drawn.mean()) - mean[i]) < 0.2 * sd
            assert float(drawn.std()) == pytest.approx(sd, rel=0.2)


def test_guide_survives_settings_and_state() -> None:
    data = cells(40)
    inputs = inputs_of(data)
    model = NOTMAD.for_data(data, K).double()
    guide = mixture_guide(model, [[0, 1, 2], [2, 1, 0]])
    other = NOTMADGuide.from_settings(guide.settings()).double()
    other.load_state_dict(guide.state_dict())
    with isolated(3):
        one = poutine.trace(guide).get_trace(**inputs)
    with isolated(3):
        two = poutine.trace(other).get_trace(**inputs)
    assert one.log_prob_sum() == two.log_prob_sum()


def test_guide_refuses_priors_on_other_supports() -> None:
    data = cells(40)
    model = NOTMAD.for_data(data, K, noise_prior=dist.Uniform(0.1, 2.0)).double()
    with pytest.raises(eg.SchemaError, match="sigma: found a prior on"):
        mixture_guide(model, [[0, 1, 2]])
