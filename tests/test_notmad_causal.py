"""Total effects and interventions of a fitted NOTMAD against sums over paths and simulations of cut equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from notmad_use_cases import FORMS, about_cells, close, draws_of, from_prior

import embergraph as eg
from embergraph import models


@pytest.fixture(scope="module", params=list(FORMS))
def fit(request: pytest.FixtureRequest) -> eg.NOTMADFit:
    return from_prior(**FORMS[request.param])


def test_total_effects_sum_all_directed_paths(fit: eg.NOTMADFit) -> None:
    frame = about_cells(5, 6)
    _, W, _ = draws_of(fit, frame)
    paths = sum(np.linalg.matrix_power(W, length) for length in range(1, 4))
    found = fit.total_effects(frame)
    close(found["effect"], paths.mean(0))
    close(found["upper"], np.quantile(paths, 0.95, axis=0, method="weibull"))
    close(found["effect_probability"], (np.abs(paths) > 0.05).mean(0))
    average = fit.total_effects(frame, average=True, scale="original")
    scale = fit.standardizer.scale
    close(average["effect"], paths.mean((0, 1)) * scale[None] / scale[:, None])
    close(average["lower"], np.quantile(paths.mean(1), 0.05, axis=0, method="weibull") * scale[None] / scale[:, None])


def test_an_intervention_without_noise_follows_total_effects(fit: eg.NOTMADFit) -> None:
    frame = about_cells(5, 7)
    _, W, b = draws_of(fit, frame)
    T = np.linalg.inv(np.eye(4) - W)
    without = np.einsum("sna,snab->snb", b, T)
    change = T[:, :, 1] * (2.0 - without[:, :, 1, None])  # Mek set to 2: what it changes by, along all paths
    found = fit.do({"Mek": 2.0}, frame)
    close(found["difference"], change.mean(0))
    close(found["difference_lower"], np.quantile(change, 0.05, axis=0, method="weibull"))
    close(found["baseline"], without.mean(0))
    close(found["level"], (without + change).mean(0))
    average = fit.do({"Mek": 2.0}, frame, average=True)
    close(average["difference_upper"], np.quantile(change.mean(1), 0.95, axis=0, method="weibull"))
    transform = fit.standardizer
    original = fit.do({"Mek": 2.0 * transform.scale[1] + transform.center[1]}, frame, scale="original")
    close(original["level"], found["level"] * transform.scale + transform.center)
    close(original["difference"], found["difference"] * transform.scale)
    assert found.attrs["do"] == "Mek = 2"


def mutilated(W: np.ndarray, b: np.ndarray, e: np.ndarray, settings: dict[int, float]) -> np.ndarray:
    """One cell, gene by gene: regulators first, set genes at their values."""
    x = np.zeros(len(b))
    for _ in range(len(b)):
        for j in range(len(b)):
            x[j] = settings.get(j, b[j] + x @ W[:, j] + e[j])
    return x


@pytest.mark.parametrize("likelihood", [None, models.StudentSEM(5.0), models.BinarySEM()])
def test_an_intervention_with_noise_is_a_simulation_of_the_cut_equations(likelihood: Any) -> None:
    """Same law as draws, gene by gene, from equations with the set genes' columns cut; a wrong model must differ."""
    options = {"edge_prior": dist.Normal(0.0, 0.8), "likelihood": likelihood}
    fit = from_prior(num_draws=1, **options)
    frame = about_cells(1, 8)
    many = frame.loc[["cell0"] * 4000].set_index(np.arange(4000).astype(str))
    found = fit.do({"Raf": 1.0, "Erk": 0.0}, many, noise=True, num_samples=2)
    _, W, b = draws_of(fit, frame)
    rng = np.random.default_rng(0)
    sigma = np.broadcast_to(fit.global_draws(None).get("sigma", torch.ones(1)).numpy().reshape(-1), 4)
    draws = []
    for _ in range(4000):
        e = sigma * (rng.standard_t(5.0, 4) if isinstance(likelihood, models.StudentSEM) else rng.normal(size=4))
        if isinstance(likelihood, models.BinarySEM):
            u, x = rng.uniform(size=4), np.zeros(4)
            for _ in range(4):
                x = (u < 1 / (1 + np.exp(-(b[0, 0] + x @ W[0, 0])))).astype(float)
                x[[0, 2]] = 1.0, 0.0
            draws.append(x)
        else:
            draws.append(mutilated(W[0, 0], b[0, 0], e, {0: 1.0, 2: 0.0}))
    wanted = np.array(draws)
    error = wanted.std(0) / np.sqrt(4000) + 1e-12
    gap = np.abs(found["level"].values.mean(0) - wanted.mean(0))
    assert (gap < 6 * error).all()
    assert found["level"].values[:, [0, 2]].std() < 0.6  # exactly at 1 and 0
    close(found["level"][:, 0], 1.0)
    close(found["level"][:, 2], 0.0)
    spread = found["level"].values.std(0) * np.sqrt(2)  # means of two draws a cell
    np.testing.assert_allclose(spread[[1, 3]], wanted.std(0)[[1, 3]], rtol=0.15)


def test_noise_is_the_same_with_and_without_the_intervention() -> None:
    fit = from_prior(num_draws=6)
    frame = about_cells(3, 9)
    found = fit.do({"Akt": 1.0}, frame, noise=True)
    values = fit.global_draws(None)
    last = (values["order"].reshape(-1, 4)[:, -1] == 3).numpy()
    if last.all():
        close(found["difference"][:, :3], 0.0)
    nothing = fit.total_effects(frame)["effect"].values[:, 3] == 0  # genes that Akt does not reach in any draw
    close(found["difference"].values[nothing & (np.arange(4) != 3)], 0.0)
    assert (found["level_upper"] - found["level_lower"] > 0.1).values[:, :3].all()


def test_interventions_refuse_what_has_no_answer() -> None:
    frame = about_cells(2, 0)
    for settings, words in (({}, "found genes nothing"), ({"Src": 1.0}, "'Src'"), ({"Raf": np.nan}, "not finite")):
        with pytest.raises(eg.DataError, match=words):
            from_prior().do(settings, frame)
    binary = from_prior(likelihood=models.BinarySEM())
    for ask in (lambda: binary.do({"Raf": 1.0}, frame), lambda: binary.total_effects(frame)):
        with pytest.raises(eg.DataError, match="binary likelihood"):
            ask()


def test_networks_of_a_relaxed_fit_are_projected_first() -> None:
    fit = from_prior(order=None, acyclicity=models.AcyclicityFactor(weight=0.0))
    frame = about_cells(4, 0)
    _, W, _ = draws_of(fit, frame)
    assert fit.networks(frame).attrs["share_acyclic"] < 1
    W = eg.project(torch.as_tensor(W)).networks.numpy()
    close(fit.total_effects(frame)["effect"], (np.linalg.inv(np.eye(4) - W) - np.eye(4)).mean(0))
