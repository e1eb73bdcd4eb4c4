"""The exact guide of the linear Environment VAE: closed forms, a bound that never falls, recovery and coverage."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from pyro import poutine
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from sklearn.decomposition import PCA
from torch import Tensor

from embergraph.guides.linear_environment_vae import LinearEnvironmentVAEGuide
from embergraph.guides.parts.linear_gaussian import LatentMoments, LinearGaussian, Shifts
from embergraph.inference import em
from embergraph.models.environment_vae import EnvironmentVAE
from embergraph.models.parts.decoders import LinearDecoder, MLPDecoder
from embergraph.models.parts.environment_priors import SingleEffects, StandardPrior
from embergraph.models.parts.errors import DataError
from embergraph.models.parts.likelihoods import GaussianLikelihood


def simulated(
    seed: int, E: int = 20, d: int = 4, p: int = 20, n: int = 60, targets: int = 1, noise: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells, their environments, shifts and decoder; no environment is a control."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(d, p, generator=g, dtype=torch.float64) / math.sqrt(d)
    mu = torch.zeros(E, d, dtype=torch.float64)
    for e in range(E):
        chosen = torch.randperm(d, generator=g)[: int(torch.randint(targets + 1, (), generator=g))]
        mu[e, chosen] = 2.5 * torch.randn(len(chosen), generator=g, dtype=torch.float64)
    environment = torch.arange(E).repeat_interleave(n)
    z = mu[environment] + torch.randn(E * n, d, generator=g, dtype=torch.float64)
    return z @ W + noise * torch.randn(E * n, p, generator=g, dtype=torch.float64), environment, mu, W


def model_for(E: int, d: int, p: int, targets: int = 1, control: int | None = None) -> EnvironmentVAE:
    prior = SingleEffects(E, d, control, max_targets=targets)
    return EnvironmentVAE(prior, LinearDecoder(d, p), GaussianLikelihood(p)).double()


def swept(
    model: EnvironmentVAE, x: Tensor, environment: Tensor, num: int, **options: float
) -> tuple[LinearEnvironmentVAEGuide, list[float]]:
    guide = LinearEnvironmentVAEGuide.for_model(model, **options).double()
    inputs = {"environment": environment, "expression": x}
    return guide, [guide.update(model, inputs, step) for step in range(num)]


def aligned(model: EnvironmentVAE, W: Tensor, mu: Tensor) -> tuple[Tensor, float]:
    """True shifts in the order and signs of the model's latents, and the disentanglement of its decoder."""
    P = W @ torch.linalg.pinv(model.decoder.weight.detach())  # (true, found)
    rows, columns = linear_sum_assignment(-P.abs().numpy())
    truth = torch.zeros(len(mu), P.shape[1], dtype=torch.float64)
    truth[:, columns] = mu[:, rows] * P[rows, columns].sign()
    return truth, float((P.abs().amax(1).square() / P.square().sum(1)).mean())


@pytest.mark.parametrize("d", [1, 3])
def test_one_environment_without_targets_is_probabilistic_pca(d: int) -> None:
    x, environment, _, _ = simulated(0, E=1, n=400, d=3)
    model = model_for(1, d, 20, control=0)
    guide, _ = swept(model, x, environment, 60, minimum_information=0.0)
    nothing = Shifts(torch.zeros(1, d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64))
    found = float(guide.linear().log_likelihood(guide.sums(x, environment), nothing))
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    rest = values[d:].mean()
    closed = -200 * (20 * math.log(2 * math.pi) + np.log(values[:d]).sum() + (20 - d) * math.log(rest) + 20)
    assert found == pytest.approx(closed, abs=1e-6)
    assert found == pytest.approx(400 * PCA(d).fit(x.numpy()).score(x.numpy()), abs=0.1)  # which divides by n - 1


@pytest.mark.parametrize(("targets", "control"), [(1, None), (1, 0), (3, None), (3, 2)])
def test_no_sweep_lowers_the_bound(targets: int, control: int | None) -> None:
    x, environment, _, _ = simulated(targets, E=9, p=9, n=30, targets=min(targets, 2))
    _, bounds = swept(model_for(9, 4, 9, targets, control), x, environment, 40)
    assert np.diff(bounds).min() > -1e-8
    assert bounds[-1] > bounds[0] + 1e-3


def test_a_wrong_scale_lowers_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    x, environment, _, _ = simulated(0, E=9, p=9, n=30)
    best = LatentMoments.best_scales
    monkeypatch.setattr(LatentMoments, "best_scales", lambda self, total: 1 / best(self, total))
    _, bounds = swept(model_for(9, 4, 9), x, environment, 10)
    assert np.diff(bounds).min() < -1e-6


def test_decoder_and_noise_end_where_the_bound_is_flat() -> None:
    x, environment, _, _ = simulated(1, E=8, p=8, d=2)
    model = model_for(8, 2, 8)
    guide, _ = swept(model, x, environment, 300)
    at = guide.linear()
    parts = [part.clone().requires_grad_() for part in (at.weight, at.bias, at.variance)]
    cells = guide.sums(x, environment)
    value = LinearGaussian(*parts).log_likelihood(cells, guide.environment.shifts(cells))
    for slope, size in zip(torch.autograd.grad(value, parts), (1.0, 1.0, 1.0), strict=True):
        assert float(slope.abs().max()) < 1e-3 * size * len(x) ** 0.5


def test_bound_is_that_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean of log p - log q over draws of all sites; z drops out draw by draw since its posterior is exact."""
    x, environment, _, _ = simulated(2, E=4, p=6, d=2, n=8)
    model = model_for(4, 2, 6, targets=2)
    guide, bounds = swept(model, x, environment, 10)
    monkeypatch.setattr(type(guide.environment), "widened", lambda self, linear: self)
    inputs = {"environment": environment, "expression": x}
    differences = []
    torch.manual_seed(0)
    with torch.no_grad(), pyro.plate("draw", 20000, dim=-2):
        drawn = poutine.trace(guide).get_trace(**inputs)
        scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**inputs)
    for trace, sign in ((scored, 1.0), (drawn, -1.0)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and not site["name"].startswith(("draw", "cell")):
                differences.append(sign * site["log_prob"].expand(20000, -1).sum(1))
    total = torch.stack(differences).sum(0).detach()
    error = float(total.std()) / math.sqrt(len(total))
    assert float(total.mean()) == pytest.approx(bounds[-1], abs=4 * error)
    assert error < 0.02


def test_latents_are_drawn_given_the_drawn_shifts() -> None:
    x, environment, _, _ = simulated(3, E=6, p=8, d=2, n=5)
    model = model_for(6, 2, 8)
    guide, _ = swept(model, x, environment, 5)
    with pyro.plate("draw", 3, dim=-2):
        trace = poutine.trace(guide).get_trace(environment, x)
        replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(environment, x)
    mean = replayed.nodes["shift"]["value"].squeeze(1)[:, environment]  # (draw, cell, latent)
    W, b, s2 = guide.linear().weight, guide.linear().bias, guide.linear().variance
    C = W.mT @ W + s2 * torch.eye(8, dtype=torch.float64)
    wanted = mean + (x - b - mean @ W) @ torch.linalg.solve(C, W.mT)
    z = trace.nodes["z"]["fn"]
    torch.testing.assert_close(z.mean, wanted)
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(z.covariance_matrix[0, 0], eye - W @ torch.linalg.solve(C, W.mT))
    assert trace.nodes["z"]["value"].shape == (3, len(x), 2)


def test_axes_targets_and_origin_are_recovered() -> None:
    """Up to two targets and no control, so that the mean of the environments is not the origin."""
    for seed in range(3):
        x, environment, mu, W = simulated(seed, E=24, n=100, targets=2)
        model = model_for(24, 4, 20, targets=3)
        guide, _ = swept(model, x, environment, 40)
        truth, disentanglement = aligned(model, W, mu)
        found = guide.environment.target_probability() > 0.5
        assert disentanglement > 0.97
        assert bool(found[truth.abs() > 0.8].all())
        assert float(truth[found].eq(0).double().mean()) < 0.05
        assert float(guide.rotation_agreement) > 0.5


def test_intervals_cover() -> None:
    scores = []
    for seed in range(3):
        x, environment, mu, W = simulated(seed + 20, E=60)
        model = model_for(60, 4, 20)
        guide, _ = swept(model, x, environment, 40)
        q, (truth, _) = guide.environment, aligned(model, W, mu)
        variances = q.marginal_variances(guide.linear())
        assert bool((variances >= q.size_variance - 1e-12).all())
        called = (q.probability[..., 1:] > 0.5) & (truth != 0).unsqueeze(1)
        error = q.size_mean - truth.unsqueeze(1)
        scores.append((error / variances.sqrt())[called])
    z = torch.cat(scores).abs()
    assert len(z) > 70
    for level, allowed in ((0.5, 0.14), (0.8, 0.11), (0.95, 0.06)):
        inside = float((z < norm.ppf(0.5 + level / 2)).double().mean())
        assert inside == pytest.approx(level, abs=allowed)  # about 2.5 standard errors


def test_latents_too_many_are_dropped() -> None:
    x, environment, mu, W = simulated(4)
    model = model_for(20, 8, 20)
    guide, _ = swept(model, x, environment, 40)
    dropped = model.decoder.weight.detach().abs().sum(1) == 0
    assert int(dropped.sum()) == 4
    assert float(guide.environment.target_probability()[:, dropped].max()) == 0.0
    assert aligned(model, W, mu)[1] > 0.95
    kept = model_for(20, 8, 20)
    swept(kept, x, environment, 3, minimum_information=0.0)
    assert bool((kept.decoder.weight.abs().sum(1) > 0).all())


def test_equal_environments_have_no_targets_and_no_axes() -> None:
    x, environment, _, _ = simulated(5, E=6, n=100, targets=0)
    guide, _ = swept(model_for(6, 4, 20, targets=2), x, environment, 30)
    assert float(guide.environment.target_probability().max()) < 0.5
    assert float(guide.rotation_agreement) == 0.0


def test_a_small_control_is_the_origin_all_the_same() -> None:
    x, _, _, W = simulated(6, E=1, n=4000, d=2, p=10, targets=0)
    environment = torch.cat([torch.full((50,), 0), torch.full((1975,), 1), torch.full((1975,), 2)])
    mu = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    x = x + (mu @ W)[environment]
    model = model_for(3, 2, 10, control=0)
    guide, _ = swept(model, x, environment, 20)
    assert aligned(model, W, mu)[1] > 0.98
    assert bool((guide.environment.target_probability()[1:] > 0.99).sum(1).eq(1).all())


def test_a_known_noise_stays() -> None:
    x, environment, _, _ = simulated(0, E=6, p=8, d=2)
    likelihood = GaussianLikelihood(8, initial=1.3, learned=False)
    model = EnvironmentVAE(SingleEffects(6, 2, max_targets=1), LinearDecoder(2, 8), likelihood).double()
    _, bounds = swept(model, x, environment, 20)
    assert float(model.likelihood.scale) == pytest.approx(1.3)
    assert np.diff(bounds).min() > -1e-8


def test_em_fits_and_exports() -> None:
    x, environment, _, _ = simulated(7, E=12, p=10, d=3)
    data = xr.Dataset({"expression": (("cell", "gene"), x.float().numpy()), "environment": ("cell", environment)})
    data = data.assign_coords(condition=[f"e{e}" for e in range(12)])
    model = EnvironmentVAE.for_data(data, 3, max_targets=1)
    before = model.decoder.weight.detach().clone()
    fit = em(model, lambda model: LinearEnvironmentVAEGuide.for_model(model), data, progress=False)
    assert torch.equal(model.decoder.weight, before)  # the caller's model is left alone
    assert fit.model.decoder.weight is fit.guide.decoder.weight
    assert fit.settings["monotone"]
    assert fit.settings["bound_falls"] == 0
    assert fit.settings["converged"]
    tree = fit.posterior(data, num_samples=50, prior=False, predictive=False)
    found = {name: value.dims[2:] for name, value in tree["posterior"].data_vars.items()}
    assert found["shift"] == ("condition", "latent")
    assert found["z"] == ("cell", "latent")
    assert {"target", "size", "shift_variance", "null_probability"} <= set(found)
    again = LinearEnvironmentVAEGuide.from_settings(fit.guide.settings())
    again.load_state_dict(fit.guide.state_dict())
    again.attach(fit.model)
    assert again.decoder is fit.model.decoder
    assert torch.equal(again.environment.probability, fit.guide.environment.probability)


def test_sums_belong_to_their_data() -> None:
    x, environment, _, _ = simulated(0, E=3, p=5, d=2)
    guide = LinearEnvironmentVAEGuide.for_model(model_for(3, 2, 5))
    first = guide.sums(x, environment)
    assert guide.sums(x, environment) is first
    assert not torch.equal(guide.sums(x + 1, environment).mean, first.mean)


def test_models_without_closed_forms_are_refused() -> None:
    prior, decoder, likelihood = SingleEffects(3, 2), LinearDecoder(2, 5), GaussianLikelihood(5)
    with pytest.raises(DataError, match="decoder: found MLPDecoder; wanted LinearDecoder"):
        LinearEnvironmentVAEGuide.for_model(EnvironmentVAE(prior, MLPDecoder(2, 5), likelihood))
    with pytest.raises(DataError, match="environment_prior: found StandardPrior"):
        LinearEnvironmentVAEGuide.for_model(EnvironmentVAE(StandardPrior(3, 2), decoder, likelihood))
    with pytest.raises(DataError, match="scale for every gene"):
        LinearEnvironmentVAEGuide(prior, decoder, GaussianLikelihood(5, scale="gene"))
    with pytest.raises(DataError, match="num_latents: found 5"):
        LinearEnvironmentVAEGuide(SingleEffects(3, 5), LinearDecoder(5, 5), likelihood)
    with pytest.raises(DataError, match="minimum_information: found 1"):
        LinearEnvironmentVAEGuide(prior, decoder, likelihood, minimum_information=1.0)
