"""Draws as modes of perturbed posteriors, against closed forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from embergraph.inference.bootstrap import Perturbation, PerturbedDensity, perturb, prior_spread
from embergraph.inference.density import LogDensity
from embergraph.inference.maximum import maximize
from embergraph.inference.messengers import Supply, isolated
from embergraph.models.parts.distributions import SpikeSlab

N = 400
PRIOR, NOISE = 0.1, 2.0


def regression(x: Tensor, y: Tensor) -> None:
    """Two coefficients whose prior is as informative as the data, known noise."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), PRIOR).to_event(1))
    with pyro.plate("cell", len(x), dim=-1):
        rows, values = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal((rows * w).sum(-1), NOISE), obs=values)


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2, generator=generator, dtype=torch.double)
    x[:, 1] += 0.5 * x[:, 0]
    noise = NOISE * torch.randn(N, generator=generator, dtype=torch.double)
    return {"x": x, "y": x @ torch.tensor([0.2, -0.1], dtype=torch.double) + noise}


def draws_of(density: LogDensity, moved: bool) -> Tensor:
    with isolated(0, dtype=torch.double):
        starts, found = perturb(density, torch.zeros(1, 2), "cell", 300)
        change = found if moved else Perturbation(found.weights, torch.zeros_like(found.shift))
        perturbed = PerturbedDensity(density, change, "cell")
        return maximize(perturbed, starts, num_steps=60, learning_rate=0.05, scale=float(N), progress=False).points


def test_draws_of_a_gaussian_regression_are_from_its_posterior() -> None:
    inputs = data()
    density = LogDensity(regression, inputs)
    x, y = inputs["x"], inputs["y"]
    precision = x.mT @ x / NOISE**2 + torch.eye(2) / PRIOR**2
    covariance = precision.inverse()
    mean = covariance @ (x.mT @ y) / NOISE**2
    draws = draws_of(density, moved=True)
    assert draws.shape == (600, 2)
    sd = covariance.diagonal().sqrt()
    assert float(((draws.mean(0) - mean) / sd).abs().max()) < 0.1
    torch.testing.assert_close(draws.mT.cov(), covariance, rtol=0.2, atol=0.1 * float(covariance.max()))
    half = draws.unflatten(0, (300, 2))
    assert float((half[:, 0] * half[:, 1]).mean(0).max() - (mean**2).max()) < 0, "pairs must be antithetic"
    without = draws_of(density, moved=False).std(0)
    assert bool((without < 0.85 * sd).all()), "without a moved prior draws must be too narrow"


def test_perturbed_density_by_hand() -> None:
    inputs = data()
    density = LogDensity(regression, inputs)
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(3, 2, generator=generator, dtype=torch.double)
    change = Perturbation(
        torch.rand(3, N, generator=generator, dtype=torch.double),
        torch.randn(3, 2, generator=generator, dtype=torch.double),
    )
    perturbed = PerturbedDensity(density, change, "cell")
    pointwise = dist.Normal(vector @ inputs["x"].mT, NOISE).log_prob(inputs["y"])
    prior = dist.Normal(0.0, PRIOR).log_prob(vector - change.shift).sum(-1)
    torch.testing.assert_close(perturbed(vector), prior + (change.weights * pointwise).sum(-1))
    rows = torch.tensor([5, 9, 300, 17])
    with Supply({"cell": rows}):
        batch = perturbed(vector)
    torch.testing.assert_close(batch, prior + N / 4 * (change.weights * pointwise)[:, rows].sum(-1))


def test_weights_have_mean_one_and_the_exponential_law() -> None:
    density = LogDensity(regression, data())
    with isolated(0):
        starts, found = perturb(density, torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), "cell", 40)
    assert torch.equal(starts, torch.tensor([0.0, 1.0]).double().repeat_interleave(80)[:, None].expand(160, 2))
    torch.testing.assert_close(found.weights.mean(-1), torch.ones(160).double())
    assert bool((found.weights >= 0).all())
    assert float(found.weights.var()) == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(found.shift[0], -found.shift[1])
    assert float(found.shift.std()) == pytest.approx(PRIOR, rel=0.15)


def test_spread_of_priors() -> None:
    def model() -> None:
        pyro.sample("edges", SpikeSlab(0.3, 0.8, 0.05).expand((3,)).to_event(1))
        pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        pyro.sample("flat", dist.Laplace(0.0, 1.0))

    with isolated(0, dtype=torch.double):
        density = LogDensity(model, {})
        point = torch.tensor([[0.0, 0.12, 1.0, 0.3, 0.5]])
        found = prior_spread(density, point)[0]
        prior = SpikeSlab(0.3, 0.8, 0.05)
        h = 1e-4
        second = [
            float(-(prior.log_prob(w + h) - 2 * prior.log_prob(w) + prior.log_prob(w - h)) / h**2) for w in point[0, :3]
        ]
    assert second[1] < 0, "between spike and slab the log density is convex"
    wanted = torch.tensor([second[0] ** -0.5, 0.0, second[2] ** -0.5, 0.5, 0.0]).double()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert float(found[0]) == pytest.approx(0.05, rel=0.05)
    assert float(found[2]) == pytest.approx(0.8, rel=0.01)


def test_moved_priors_are_bounded() -> None:
    """A weight in the spike stays near the moved spike, however many steps are taken: it cannot run into the slab."""

    def model() -> None:
        w = pyro.sample("w", SpikeSlab(0.3, 0.8, 0.05).expand((50,)).to_event(1))
        with pyro.plate("cell", 1, dim=-1):
            pyro.sample("y", dist.Normal(0 * w.sum(-1), 1.0), obs=torch.zeros(1))

    with isolated(0, dtype=torch.double):
        density = LogDensity(model, {})
        starts, change = perturb(density, torch.zeros(1, 50), "cell", 4)
        found = maximize(
            PerturbedDensity(density, change, "cell"), starts, num_steps=400, learning_rate=0.02, progress=False
        )
    torch.testing.assert_close(found.points, change.shift, rtol=0, atol=2e-3)
