"""Several matrices that share their log scales: the same closed forms, summed over matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import embergraph as eg
from embergraph.guides.parts.log_scale_moments import elbo, mean_field, moments, variational
from embergraph.guides.parts.log_scale_target import ScaleTarget
from embergraph.guides.parts.log_scales import laplace, mode

R, N, P = 3, 6, 8


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    A, B = 0.2 * normal(N, N), 0.2 * normal(P, P)
    return normal(R, N, P), torch.eye(N, dtype=torch.double) + A @ A.mT, torch.eye(P, dtype=torch.double) + B @ B.mT


def energy(theta, Y, Psi_1, Psi_2):
    """f by its definition, matrix by matrix."""
    a, b = theta[:N], theta[N:]
    total = 0.0
    for one in Y:
        Z = a.exp()[:, None] * one * b.exp()
        total = total + 0.5 * ((Psi_1 @ Z + Z @ Psi_2) * Z).sum() - P * a.sum() - N * b.sum()
    return total


def test_energy_gradient_and_hessian_are_those_of_the_sum(problem):
    target = ScaleTarget.of(*problem, None, None)
    theta = torch.linspace(-0.5, 0.5, N + P, dtype=torch.double)
    at = target.expect(theta)
    f = lambda x: energy(x, *problem)  # noqa: E731
    assert at.value == pytest.approx(float(f(theta)))
    torch.testing.assert_close(at.gradient, torch.autograd.functional.jacobian(f, theta))
    blocks = target.hessian(at)
    dense = torch.cat([torch.cat([blocks.row, blocks.cross], 1), torch.cat([blocks.cross.mT, blocks.col], 1)])
    torch.testing.assert_close(dense, torch.autograd.functional.hessian(f, theta))


def test_one_matrix_given_twice_has_its_own_mode_and_half_its_variance(problem):
    Y, Psi_1, Psi_2 = problem
    twice = Y[:1].expand(2, N, P)
    a, b = mode(Y[0], Psi_1, Psi_2)
    for found, wanted in zip(mode(twice, Psi_1, Psi_2), (a, b), strict=True):
        torch.testing.assert_close(found, wanted)
    one = laplace(Y[0], Psi_1, Psi_2, a, b, mean_shift=False)
    two = laplace(twice, Psi_1, Psi_2, a, b, mean_shift=False)
    torch.testing.assert_close(two.spread, one.spread / 2)


@pytest.mark.parametrize("fit", [laplace, mean_field])
def test_expected_energy_is_the_number_of_values(problem, fit):
    Y, Psi_1, Psi_2 = problem
    scales = fit(Y, Psi_1, Psi_2, *mode(Y, Psi_1, Psi_2))
    S_1, S_2 = moments(Y, scales)
    assert float((Psi_1 * S_1).sum() + (Psi_2 * S_2).sum()) == pytest.approx(N * P)
    assert elbo(Y, Psi_1, Psi_2, variational(Y, Psi_1, Psi_2, scales)) >= elbo(Y, Psi_1, Psi_2, scales)


def test_moments_against_draws(problem):
    Y, Psi_1, Psi_2 = problem
    scales = laplace(Y, Psi_1, Psi_2, *mode(Y, Psi_1, Psi_2))
    values, vectors = torch.linalg.eigh(scales.spread)
    root = vectors * values.clamp(min=0).sqrt()
    unit = torch.randn(40_000, N + P, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    theta = scales.mean + unit @ root.mT
    Z = theta[:, None, :N, None].exp() * Y * theta[:, None, None, N:].exp()
    torch.testing.assert_close(moments(Y, scales)[0], (Z @ Z.mT).mean((0, 1)), rtol=0.05, atol=0.1)


def test_shared_scales_are_recovered_better_than_own_ones():
    data = eg.datasets.simulated_matrix(20, 25, num_replicates=4, shared_scales=True, seed=0)
    errors = {}
    for shared in (True, False):
        fit = eg.fit(eg.models.MEDMAGMA.for_data(data, shared_scales=shared), data, progress=False)
        scales = fit.scales()
        assert scales["log_u"].dims == (("cell",) if shared else ("replicate", "cell"))
        truth = xr.DataArray(np.asarray(data["true_log_u"]).reshape(-1, 20)[0], dims="cell")
        errors[shared] = float(abs(scales["log_u"] - truth).mean())
    assert errors[True] < 0.7 * errors[False]
