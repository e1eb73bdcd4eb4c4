"""NOTMAD with conflicting orders: exact draws on tiny problems, recovery on small ones, and what the plan promises."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import embergraph as eg
from embergraph import metrics
from embergraph.inference import bootstrap
from embergraph.inference.density import LogDensity
from embergraph.inference.hmc import negative_hessian, whitened_hmc, whitening
from embergraph.inference.messengers import isolated
from embergraph.methods import _notmad_projected as projected
from embergraph.models import NOTMAD
from embergraph.models.parts.errors import DataError
from embergraph.models.parts.projection import is_acyclic


def inputs_of(data: xr.Dataset) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(data[name].values) for name in ("covariates", "expression")}


def tiny(num_cells: int, num_genes: int, effect: float, seed: int = 0) -> xr.Dataset:
    """A weak chain whose direction turns with the covariate."""
    rng = np.random.default_rng(seed)
    C = np.linspace(-1, 1, num_cells)[:, None]
    X = rng.normal(size=(num_cells, num_genes))
    for i in range(num_cells):
        for gene in range(num_genes - 1):
            a, b = (gene, gene + 1) if C[i, 0] > 0 else (gene + 1, gene)
            X[i, b] += effect * X[i, a]
    return eg.from_arrays(X - X.mean(0), C)


def hmc_draws(density: LogDensity, start: torch.Tensor, num_draws: int) -> torch.Tensor:
    roots = whitening(negative_hessian(density, start), floor=4.0).expand(100, -1, -1)
    starts = start.expand(100, -1).clone()
    chains = whitened_hmc(density, starts, roots, num_warmup=40, num_draws=num_draws, num_leapfrog=5, progress=False)
    return chains.draws.flatten(0, 1)


def test_hmc_crosses_jumps_of_the_density_exactly() -> None:
    """Two genes, one archetype: the posterior of both directions on a grid, with a jump where they change places."""
    data = tiny(24, 2, 0.0, seed=3)
    data["expression"][:, 1] += 0.5 * data["expression"][:, 0]
    model = NOTMAD.for_data(data, 1, encoder="linear", order="projected", edge_prior=dist.Normal(0.0, 0.5)).double()
    inputs = inputs_of(data)
    held = {"intercepts": torch.zeros(1, 2), "encoder_weights": torch.zeros(1, 1), "encoder_bias": torch.zeros(1)}
    held |= {"sigma": torch.tensor(1.0), "encoder_log_amplitude": torch.tensor(0.0)}
    density = LogDensity(model, inputs, {name: value.double() for name, value in held.items()})
    axis = torch.linspace(-2.0, 2.0, 401, dtype=torch.double)
    grid = torch.cartesian_prod(axis, axis)  # effects 0 -> 1 and 1 -> 0
    with torch.no_grad():
        mass = density(grid).softmax(0)
    x = inputs["expression"]
    residual = [x[:, 1] - 0.3 * x[:, 0], x[:, 0]]  # by hand at (0.3, -0.2): the larger effect is kept
    by_hand = sum(dist.Normal(0.0, 1.0).log_prob(r).sum() for r in residual)
    by_hand = by_hand + dist.Normal(0.0, 0.5).log_prob(torch.tensor([0.3, -0.2]).double()).sum()
    terms = density.terms(torch.tensor([[0.3, -0.2]]).double())
    torch.testing.assert_close(terms["expression"] + terms["edges"], by_hand.reshape(1))
    with isolated(0):
        drawn = hmc_draws(density, torch.tensor([[0.3, -0.1]]).double(), 60)
    forward = grid[:, 0].abs() > grid[:, 1].abs()
    share = float(mass[forward].sum())
    assert 0.3 < share < 0.97, "both directions must be possible for the test to say anything"
    assert abs(float((drawn[:, 0].abs() > drawn[:, 1].abs()).double().mean()) - share) < 0.03
    for i in range(2):
        mean = float(mass @ grid[:, i])
        sd = float(mass @ (grid[:, i] - mean).square()) ** 0.5
        assert abs(float(drawn[:, i].mean()) - mean) < 0.1 * sd
        assert float(drawn[:, i].std()) == pytest.approx(sd, rel=0.06)
    # Draws given one direction, projected afterwards, are those of another posterior.
    model.kept = torch.tensor([[0, 1], [0, 0]]).bool().expand(24, 2, 2)
    with isolated(0):
        fixed = hmc_draws(density, torch.tensor([[0.3, -0.1]]).double(), 40)
    assert abs(float((fixed[:, 0].abs() > fixed[:, 1].abs()).double().mean()) - share) > 0.1


def random_walk(density: LogDensity, start: torch.Tensor, num_chains: int, num_steps: int) -> torch.Tensor:
    """Metropolis with Gaussian steps, many chains; the second half of each, thinned."""
    at = start.expand(num_chains, -1) + 0.05 * torch.randn(num_chains, start.shape[-1], dtype=start.dtype)
    with torch.no_grad():
        value, kept = density(at), []
        for step in range(num_steps):
            size = 0.08 if step % 2 else 0.25
            moved = torch.rand_like(at) < 3 / at.shape[-1]
            new = at + size * torch.randn_like(at) * moved
            new_value = density(new)
            take = torch.rand_like(value).log() < new_value - value
            at, value = torch.where(take[:, None], new, at), torch.where(take, new_value, value)
            if step >= num_steps // 2 and step % 20 == 0:
                kept.append(at)
    return torch.cat(kept)


def test_hmc_agrees_with_a_random_walk_where_edges_turn() -> None:
    data = tiny(20, 3, 0.9)
    model = NOTMAD.for_data(data, 2, encoder="linear", order="projected", edge_prior=dist.Normal(0.0, 0.7)).double()
    inputs = inputs_of(data)
    held = {"intercepts": torch.zeros(2, 3), "sigma": torch.tensor(1.0), "encoder_log_amplitude": torch.tensor(0.0)}
    weights = {"encoder_weights": torch.tensor([[2.0, -2.0]]), "encoder_bias": torch.zeros(2)}
    held = {name: value.double() for name, value in (held | weights).items()}
    density = LogDensity(model, inputs, held)
    start = torch.zeros(1, density.num_dims).double()
    with isolated(0):
        hmc = hmc_draws(density, start, 60)
        walk = random_walk(density, start, 400, 800)

    def networks(draws: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            values = density.unpack(draws) | {name: v.expand(len(draws), *v.shape) for name, v in held.items()}
            return model.networks_of(inputs["covariates"][::5], values)[0]

    one, two = networks(hmc), networks(walk)
    assert bool(is_acyclic(one).all())
    off = ~torch.eye(3, dtype=torch.bool)
    presence = [(W != 0).double().mean(0)[:, off] for W in (one, two)]
    undecided = (presence[1] > 0.2) & (presence[1] < 0.8)
    assert undecided.double().mean() > 0.5, "directions must be open for the test to say anything"
    assert float((presence[0] - presence[1]).abs().max()) < 0.06
    spread = two.std(0)[:, off]
    assert float(((one.mean(0) - two.mean(0))[:, off].abs() / spread).max()) < 0.15
    assert float((one.std(0)[:, off] / spread - 1).abs().max()) < 0.12
