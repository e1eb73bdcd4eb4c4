"""NOTMAD with conflicting orders: exact draws on tiny problems, recovery on small ones, and what the plan promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import embergraph as eg
from embergraph import metrics
from embergraph.inference.density import LogDensity
from embergraph.inference.hmc import whitened_hmc
from embergraph.inference.maximum import Maximum, maximize
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


def test_hmc_keeps_the_exact_posterior_whose_density_jumps() -> None:
    """Chains that start at exact draws stay there; with the structure held they drift away.

    Exact draws by importance resampling of the prior: twelve cells leave thousands of effective ones.
    """
    data = tiny(10, 3, 0.6)
    model = NOTMAD.for_data(data, 2, encoder="linear", order="projected", edge_prior=dist.Normal(0.0, 0.5)).double()
    inputs = inputs_of(data)
    held = {"intercepts": torch.zeros(2, 3), "sigma": torch.tensor(1.0), "encoder_log_amplitude": torch.tensor(0.0)}
    held |= {"encoder_weights": torch.tensor([[2.0, -2.0]]), "encoder_bias": torch.zeros(2)}
    held = {name: value.double() for name, value in held.items()}
    density = LogDensity(model, inputs, held)

    def networks(draws: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            values = density.unpack(draws) | {name: v.expand(len(draws), *v.shape) for name, v in held.items()}
            return model.networks_of(inputs["covariates"][::3], values)[0]

    def moments(draws: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        W = networks(draws)[..., ~torch.eye(3, dtype=torch.bool)]
        features = torch.cat([(W != 0).double(), W, W.square()], -1).flatten(1)
        return weights @ features

    with isolated(0):
        prior = 0.5 * torch.randn(200_000, density.num_dims, dtype=torch.double)
        with torch.no_grad():
            weights = torch.cat([density.terms(part)["expression"] for part in prior.split(10_000)]).softmax(0)
        assert 1 / float(weights.square().sum()) > 3000, "too few effective draws to compare with"
        starts = prior[torch.multinomial(weights, 2000, replacement=True)]
        roots = 0.3 * torch.eye(density.num_dims, dtype=torch.double).expand(2000, -1, -1)
        chains = whitened_hmc(density, starts, roots, num_warmup=10, num_draws=15, num_leapfrog=4, progress=False)
        with torch.no_grad():
            point = {n: v.mean(0, keepdim=True) for n, v in density.unpack(starts).items()}
            point |= {name: v[None] for name, v in held.items()}
            model.kept = model.networks_of(inputs["covariates"], point)[0] != 0
        wrong = whitened_hmc(density, starts, roots, num_warmup=10, num_draws=15, num_leapfrog=4, progress=False)
        model.kept = None
    even = torch.full((2000,), 1 / 2000, dtype=torch.double)
    end = chains.draws[:, -1]
    assert bool(is_acyclic(networks(end)).all())
    assert ((networks(end) != 0) != (networks(starts) != 0)).double().mean() > 0.2, "chains must find other structures"
    exact = moments(prior, weights)
    assert float((moments(starts, even) - exact).abs().max()) < 0.045  # the error of 2000 draws
    assert float((moments(end, even) - exact).abs().max()) < 0.045
    assert float((moments(wrong.draws[:, -1], even) - exact).abs().max()) > 0.1


FAST = {"num_restarts": 4, "num_steps": 250, "num_bootstrap": 24, "progress": False}


def cells(seed: int) -> tuple[xr.Dataset, xr.Dataset]:
    raw = eg.datasets.simulated_notmad(
        seed, num_cells=500, num_genes=5, num_archetypes=3, num_covariates=2, orders="conflict", temperature=0.3
    )
    data, transform = eg.standardize(raw)
    data["true_networks"] = transform.networks_from_original(raw["true_networks"])
    return eg.split(data)


@pytest.fixture(scope="module")
def fitted() -> tuple[eg.NOTMADFit, xr.Dataset, xr.Dataset]:
    train, test = cells(0)
    return eg.fit(NOTMAD.for_data(train, 3, order="projected"), train, **FAST), train, test


def test_turning_edges_are_found_and_covered(fitted: tuple[eg.NOTMADFit, xr.Dataset, xr.Dataset]) -> None:
    fit, train, test = fitted
    networks = fit.networks(test)
    truth = test["true_networks"].to_numpy()
    edge = np.abs(truth) > 0.05
    turning = edge.any(0) & edge.any(0).T
    assert turning.any(), "the data must have an edge that turns"
    scores = metrics.evaluate(networks, test)
    assert scores["aupr"] > 0.85
    assert scores["deviation_correlation"] > 0.8
    inside = (networks["lower"] <= truth + 1e-12) & (truth - 1e-12 <= networks["upper"])
    assert 0.7 < float(inside.to_numpy()[edge].mean()) <= 1.0
    assert float(inside.to_numpy()[edge & turning].mean()) > 0.65
    assert networks.attrs["share_acyclic"] == 1.0
    assert bool(is_acyclic(torch.as_tensor(networks["network"].to_numpy())).all())
    # One order for all cells cannot turn an edge.
    shared = eg.fit(
        NOTMAD.for_data(train, 3), train, posterior="mean_field", num_restarts=2, num_steps=250, num_orders=2,
        num_guide_steps=100, progress=False,
    )  # fmt: skip
    wrong = metrics.evaluate(shared.networks(test), test)
    assert wrong["aupr"] < scores["aupr"] - 0.1
    assert wrong["mse"] > scores["mse"] + 0.005


def test_network_is_that_of_the_median_weights(fitted: tuple[eg.NOTMADFit, xr.Dataset, xr.Dataset]) -> None:
    fit, _, test = fitted
    centre = projected.central_values(fit.stored)
    best = int(fit.stored.statistics["lp"].mean(1).argmax())
    for name, value in fit.stored.values.items():
        np.testing.assert_array_equal(
            centre[name][0].numpy(), np.sort(value[best].numpy(), 0)[(value.shape[1] - 1) // 2]
        )
    W, b = fit.model.networks_of(torch.as_tensor(test["covariates"].to_numpy()), centre)
    networks = fit.networks(test)
    np.testing.assert_allclose(networks["network"], W[0].numpy(), atol=1e-12)
    np.testing.assert_allclose(networks["intercept"], b[0].numpy(), atol=1e-12)
    mixed = fit.networks(test, project_mean=False)["network"].to_numpy()
    kept = networks["network"].to_numpy() != 0
    np.testing.assert_allclose(mixed[kept], networks["network"].to_numpy()[kept])
    assert not is_acyclic(torch.as_tensor(mixed)).all()


def test_fit_says_how_it_was_made(fitted: tuple[eg.NOTMADFit, xr.Dataset, xr.Dataset], tmp_path: Path) -> None:
    fit, train, test = fitted
    assert fit.settings["routine"] == "projected map + bootstrap"
    assert fit.settings["held"] == ["encoder_log_amplitude"]
    assert fit.stored.shape[0] == fit.settings["num_modes"]
    assert fit.model.kept is None
    table = fit.report(train, test, num_samples=24)
    assert float(table["share_acyclic"]) == 1.0
    assert float(table["orders"]) == 0
    assert float(table["modes"]) == fit.settings["num_modes"]
    assert "network_rhat" not in table
    again = eg.load(fit.save(tmp_path / "fit"))
    xr.testing.assert_allclose(fit.networks(test), again.networks(test))
    density = LogDensity(fit.model, inputs_of(train), {"encoder_log_amplitude": torch.zeros(()).double()})
    vector = density.pack({name: value[0].flatten(1) for name, value in fit.stored.values.items() if name != "order"})
    with torch.no_grad():
        np.testing.assert_allclose(density(vector, jacobian=False).numpy(), fit.stored.statistics["lp"][0])


@pytest.mark.parametrize("stop_at", ["MAP, 2 starts", "MAP, projected", "posterior draws, part 1 of 1"])
def test_ctrl_c_keeps_the_point(stop_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = cells(1)
    train = train.isel(cell=slice(0, 100))

    def interrupted(density: LogDensity, starts: torch.Tensor, **options: Any) -> Maximum:
        found = maximize(density, starts, **options)
        if options["label"] == stop_at:
            return dataclasses.replace(found, interrupted=True)
        return found

    for module in (projected, projected.plan):
        monkeypatch.setattr(module, "maximize", interrupted)
    fit = eg.fit(NOTMAD.for_data(train, 2, order="projected"), train, **FAST | {"num_steps": 5})
    assert fit.settings["interrupted"]
    assert fit.settings["routine"] == "projected map"
    assert fit.model.kept is None
    networks = fit.networks(test)
    assert bool(is_acyclic(torch.as_tensor(networks["network"].to_numpy())).all())
    assert networks.attrs["point_estimate"] == 1


def test_hmc_is_there_for_small_problems_and_other_posteriors_are_refused() -> None:
    data = eg.standardize(tiny(30, 2, 0.8))[0]
    model = NOTMAD.for_data(data, 2, encoder="linear", order="projected")
    fit = eg.fit(model, data, posterior="hmc", num_warmup=5, num_draws=6, **FAST | {"num_steps": 10})
    assert fit.settings["routine"] == "projected map + hmc"
    assert fit.stored.shape == (projected.HMC_CHAINS, 6)
    assert fit.networks(data).attrs["share_acyclic"] == 1.0
    with pytest.raises(DataError, match="'mean_field'; wanted 'auto', 'hmc' or 'bootstrap'"):
        eg.fit(model, data, posterior="mean_field")
    with pytest.raises(DataError, match="'bootstrap'; wanted 'auto', 'hmc' or 'mean_field'"):
        eg.fit(NOTMAD.for_data(data, 2), data, posterior="bootstrap")


def test_the_seed_decides_everything() -> None:
    train, _ = cells(2)
    train = train.isel(cell=slice(0, 80))
    fits = [
        eg.fit(NOTMAD.for_data(train, 2, order="projected"), train, seed=seed, **FAST | {"num_steps": 4})
        for seed in (3, 3, 4)
    ]
    edges = [fit.stored.values["edges"] for fit in fits]
    assert torch.equal(edges[0], edges[1])
    assert edges[0].shape != edges[2].shape or not torch.allclose(edges[0], edges[2])


def test_held_structure_is_renewed_and_let_go() -> None:
    train, _ = cells(3)
    model = NOTMAD.for_data(train, 3, order="projected")
    inputs = inputs_of(train)
    density = projected.HeldStructure(model, inputs, {"encoder_log_amplitude": torch.zeros(()).double()})
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 3, density.num_dims, generator=generator, dtype=torch.double)
    exact = LogDensity(model, inputs, {"encoder_log_amplitude": torch.zeros(()).double()})
    with torch.no_grad():
        wanted = [exact(v, False) for v in vectors]
        torch.testing.assert_close(density(vectors[0], False), wanted[0])
        assert not torch.allclose(density(vectors[1], False), wanted[1])
        for _ in range(projected.HOLD_STEPS - 2):
            density(vectors[1], False)
        torch.testing.assert_close(density(vectors[1], False), wanted[1])
        torch.testing.assert_close(density.exactly(vectors[0]), wanted[0])
    with pytest.raises(ZeroDivisionError):
        density.climb(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert model.kept is None


def test_modes_name_their_archetypes_alike() -> None:
    train, _ = cells(3)
    model = NOTMAD.for_data(train, 3, order="projected")
    inputs = inputs_of(train)
    density = projected.HeldStructure(model, inputs, {"encoder_log_amplitude": torch.zeros(()).double()})
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, density.num_dims, generator=generator, dtype=torch.double)
    renamed = projected.sites(density, first)
    order = torch.tensor([2, 0, 1])
    for name, axis in (("edges", 1), ("intercepts", 1), ("encoder_weights", 2), ("encoder_bias", 1)):
        renamed[name] = renamed[name].index_select(axis, order)
    both = torch.cat([first, density.pack(renamed)])
    torch.testing.assert_close(*density.exactly(both))
    assert not torch.allclose(*both)
    torch.testing.assert_close(*projected.aligned(density, both))
