"""Correction of the sizes of shifts under a network decoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import embergraph as eg
from embergraph.datasets import simulated_perturbations
from embergraph.guides.parts.environment_base import EnvironmentStatistics
from embergraph.methods._environment_vae_data import prepared
from embergraph.methods._environment_vae_shifts import ShiftCalibration, shift_calibration
from embergraph.models import EnvironmentVAE
from embergraph.models.parts.errors import DataError, SchemaError

ENVIRONMENTS, LATENTS, CELLS = 40, 3, 50


def planted(misfit, variance, seed=0, shift=5.0):
    """Latent 0 moved by every second environment, latent 1 by every third, latent 2 by none and full of noise."""
    generator = torch.Generator().manual_seed(seed)
    probability = torch.zeros(ENVIRONMENTS, LATENTS)
    probability[::2, 0], probability[::3, 1] = 1.0, 1.0
    mean = shift * probability
    sd = torch.full((ENVIRONMENTS, LATENTS), math.sqrt(misfit + 1 / CELLS))
    sign = 2.0 * torch.randint(0, 2, sd.shape, generator=generator) - 1
    zbar = mean + sign * sd
    zbar[probability == 1] = shift  # the posterior follows the mean of a target: no misfit is seen there
    zbar[:, 2] = 9.0
    count = torch.full((ENVIRONMENTS,), float(CELLS))
    return EnvironmentStatistics(count, zbar, torch.tensor([variance, variance, 0.9])), mean, probability


@pytest.mark.parametrize(("misfit", "variance"), [(0.0, 0.0), (0.06, 0.05), (0.0, 0.2), (0.03, 0.1)])
def test_known_answer(misfit, variance):
    found = ShiftCalibration.of(*planted(misfit, variance))
    assert found.scale**2 == pytest.approx(1 - 3.3 * misfit - 1.2 * variance, abs=1e-6)
    assert found.spread**2 == pytest.approx(0.0041 + 0.16 * misfit, abs=1e-6)


@pytest.mark.parametrize("rows", [slice(5, 6), slice(None)])
def test_latents_that_are_no_axes_do_not_count(rows):
    """One false target, and an offset that is a "target" everywhere."""
    statistics, mean, probability = planted(0.03, 0.05)
    wanted = ShiftCalibration.of(statistics, mean, probability)
    probability[rows, 2] = 0.9
    assert ShiftCalibration.of(statistics, mean, probability) == wanted


def test_control_and_empty_environments_do_not_count():
    statistics, mean, probability = planted(0.04, 0.05)
    wanted = ShiftCalibration.of(statistics, mean, probability)
    row, empty = torch.zeros(1, LATENTS), torch.tensor([float(CELLS), 0.0])
    more = EnvironmentStatistics(
        torch.cat([empty, statistics.count]), torch.cat([row + 7, row - 7, statistics.mean]), statistics.variance
    )
    found = ShiftCalibration.of(more, torch.cat([row, row, mean]), torch.cat([row, row, probability]), control=0)
    assert found.scale == pytest.approx(wanted.scale)
    assert found.spread == pytest.approx(wanted.spread)


def test_sampling_noise_is_no_misfit():
    statistics, mean, probability = planted(0.0, 0.05, seed=1)
    assert ShiftCalibration.of(statistics, mean, probability).spread ** 2 == pytest.approx(0.0041, abs=1e-6)


def test_draws_are_scaled_and_spread():
    shifts = np.zeros((40_000, 1, 2))
    shifts[..., 0] = np.random.default_rng(0).normal(4.0, 0.3, size=(40_000, 1))
    correction = ShiftCalibration(scale=0.8, spread=0.1)
    found = correction.draws(shifts, seed=3)
    assert np.all(found[..., 1] == 0)
    assert found[..., 0].mean() == pytest.approx(5.0, abs=0.01)
    variance = (0.3**2 + 0.1**2 * (4.0**2 + 0.3**2)) / 0.8**2
    assert found[..., 0].var() == pytest.approx(variance, rel=0.03)
    assert np.array_equal(found, correction.draws(shifts, seed=3))
    assert not np.array_equal(found, correction.draws(shifts, seed=4))


def test_refuses_fits_outside_the_simulated_range():
    with pytest.raises(DataError, match="scale"):
        ShiftCalibration.of(*planted(0.1, 0.2))


def test_refuses_fits_without_targets():
    statistics, mean, probability = planted(0.0, 0.05)
    with pytest.raises(DataError, match="0, 0, 0"):
        ShiftCalibration.of(statistics, 0 * mean, 0 * probability)


@pytest.fixture(scope="module")
def data():
    return simulated_perturbations(seed=3, num_perturbations=12, num_cells=20, num_latents=3, num_genes=20)


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("decoder", {"decoder": "linear"}),
        ("environment_prior", {"environment_prior": "spike_slab"}),
        ("gene_effects", {"gene_effects": True}),
    ],
)
def test_refuses_other_models(data, part, options):
    model = EnvironmentVAE.for_data(data, 4, **options)
    fit = eg.fit(model, data, num_steps=4, progress=False, routine="svi")
    with pytest.raises(SchemaError, match=part):
        shift_calibration(fit, prepared(fit.model, data))


def test_statistics_are_those_of_the_fit(data):
    """Variances of 0.05 and a posterior that is off the means by a known amount, set by hand."""
    fit = eg.fit(EnvironmentVAE.for_data(data, 4), data, num_steps=20, progress=False)
    posterior, head, misfit = fit.guide.environment, fit.guide.encoder.head, 0.05
    with torch.no_grad():
        head.weight[4:] = 0.0
        head.bias[4:] = math.log(0.05)
    means = fit.latents(data)["mean"].values
    zbar = np.stack([means[data["environment"].values == e].mean(0) for e in range(12)])
    posterior.probability.zero_()
    posterior.probability[..., 0] = 1.0
    posterior.probability[::3, 0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    posterior.mean.copy_(torch.as_tensor(zbar) - math.sqrt(misfit + 1 / 20))
    found = shift_calibration(fit, prepared(fit.model, data))
    assert found.scale**2 == pytest.approx(1 - 3.3 * misfit - 1.2 * 0.05, rel=1e-4)
    assert found.spread**2 == pytest.approx(0.0041 + 0.16 * misfit, rel=1e-4)
