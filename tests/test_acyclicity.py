"""Acyclicity functions against closed forms, autograd, finite differences and the bound over mixtures."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from embergraph.models.parts.acyclicity import (
    ACYCLICITY,
    ExpmAcyclicity,
    LogdetAcyclicity,
    PolyAcyclicity,
    SpectralAcyclicity,
    union_squared,
)
from embergraph.models.parts.errors import DataError
from embergraph.models.parts.projection import is_acyclic

FUNCTIONS = [ExpmAcyclicity(), LogdetAcyclicity(1.0), LogdetAcyclicity(3.0), PolyAcyclicity(), SpectralAcyclicity()]


def random_weights(*shape: int, scale: float = 0.15, seed: int = 0) -> torch.Tensor:
    weights = scale * np.random.default_rng(seed).normal(size=shape)
    return torch.as_tensor(weights * (1 - np.eye(shape[-1])))


def permuted_dags(count: int, p: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    out = np.zeros((count, p, p))
    for k in range(count):
        order = rng.permutation(p)
        out[k][np.ix_(order, order)] = np.triu(scale * rng.normal(size=(p, p)), 1)
    return torch.as_tensor(out)


def cycle(p: int, length: int, weight: float = 0.3) -> torch.Tensor:
    weights = torch.zeros(p, p, dtype=torch.float64)
    for a in range(length):
        weights[a, (a + 1) % length] = weight
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1, 2, 7, 40])
def test_zero_on_dags_of_any_size(p: int, dtype: torch.dtype) -> None:
    dags = permuted_dags(50, p).to(dtype)
    assert torch.equal(ExpmAcyclicity()(dags), torch.zeros(50, dtype=dtype))
    moderate = dags[:, :12, :12] if p > 12 else dags
    assert LogdetAcyclicity(1.0)(moderate).abs().max() < (1e-3 if dtype == torch.float32 else 1e-10)


def test_zero_on_dags_with_weights_that_overflow_the_exponential() -> None:
    dag = permuted_dags(1, 6, scale=1e4)[0].float().requires_grad_()
    h = ExpmAcyclicity()(dag)
    assert h.item() == 0.0
    assert torch.autograd.grad(h, dag)[0].isfinite().all()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("length", [2, 3, 5, 20])
def test_positive_on_cycles_of_every_length(function, length: int) -> None:
    for dtype in (torch.float64, torch.float32):
        if dtype == torch.float32 and length == 20 and isinstance(function, LogdetAcyclicity):
            continue  # 0.09^20 is below what a float32 determinant can show
        tolerance = 1e-22 if isinstance(function, LogdetAcyclicity) else 0.0
        assert function(cycle(25, length, 0.9).to(dtype)).item() > tolerance


def test_expm_is_the_closed_form_of_a_two_cycle() -> None:
    # exp of [[0, a], [b, 0]] has the diagonal cosh(sqrt(a b)).
    weights = torch.tensor([[0.0, 0.7], [-1.2, 0.0]], dtype=torch.float64)
    expected = 2 * math.cosh(0.7 * 1.2) - 2
    assert ExpmAcyclicity()(weights).item() == pytest.approx(expected, rel=1e-13)


def test_logdet_is_the_closed_form_of_a_two_cycle() -> None:
    weights = torch.tensor([[0.0, 0.7], [-1.2, 0.0]], dtype=torch.float64)
    ab = (0.7 * 1.2) ** 2
    for s in (1.0, 2.0):
        expected = -math.log(s * s - ab) + 2 * math.log(s)
        assert LogdetAcyclicity(s)(weights).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("p", [3, 12, 30])
def test_expm_agrees_with_scipy(p: int, scale: float) -> None:
    weights = random_weights(p, p, scale=scale / math.sqrt(p), seed=p)
    expected = np.trace(scipy.linalg.expm(weights.numpy() ** 2)) - p
    h = ExpmAcyclicity()
    assert h(weights).item() == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert h(weights.float()).item() == pytest.approx(h(weights).item(), rel=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_gradients_against_finite_differences(function, batch: tuple[int, ...]) -> None:
    weights = random_weights(*batch, 4, 4, scale=0.3).requires_grad_()
    assert torch.autograd.gradcheck(function, (weights,), eps=1e-6, atol=1e-7)
    assert torch.autograd.gradgradcheck(function, (weights,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_gradient_beyond_the_limit_against_finite_differences(batch: tuple[int, ...]) -> None:
    weights = random_weights(*batch, 4, 4, scale=2.0).requires_grad_()
    assert (ExpmAcyclicity(linear_until=1e-2)(weights) > 2e-2).all()
    assert torch.autograd.gradcheck(ExpmAcyclicity(linear_until=1e-2), (weights,), eps=1e-7, rtol=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("length", [2, 3])
def test_gradient_is_not_dropped_at_a_cycle(function, length: int) -> None:
    scalar = cycle(4, length).requires_grad_()
    (gradient,) = torch.autograd.grad(function(scalar), scalar)
    assert torch.equal(gradient != 0, scalar != 0)
    assert (gradient >= 0).all()

    batch = torch.stack([cycle(4, length), torch.zeros(4, 4, dtype=torch.float64)]).requires_grad_()
    (gradients,) = torch.autograd.grad(function(batch).sum(), batch)
    torch.testing.assert_close(gradients[0], gradient)
    assert not gradients[1].any()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_batched_equals_one_by_one(function) -> None:
    weights = random_weights(2, 5, 6, 6, scale=0.2, seed=3)
    weights[1, 4] *= 8  # leaves the domain of logdet, or needs more squarings than the rest
    one_by_one = torch.stack([torch.stack([function(w) for w in row]) for row in weights])
    torch.testing.assert_close(function(weights), one_by_one, rtol=1e-12, atol=1e-14)


def test_expm_stays_finite_increasing_and_smooth_at_the_limit() -> None:
    weights = random_weights(10, 10, scale=1.0, seed=1).float()
    scales = torch.tensor([0.5, 1.0, 1.3, 2.0, 5.0, 10.0, 100.0, 1e4, 1e6])
    stack = (scales[:, None, None] * weights).requires_grad_()
    h = ExpmAcyclicity()(stack)
    (gradient,) = torch.autograd.grad(h.sum(), stack)
    assert h.isfinite().all()
    assert (h.diff() > 0).all()
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((-2, -1)) > 1e-3).all()
    # Every single entry still counts far beyond the limit.
    torch.testing.assert_close(gradient[5].sign(), weights.sign())

    h_at = float(ExpmAcyclicity()(weights.double()))
    below, above = ExpmAcyclicity(h_at * (1 + 1e-9)), ExpmAcyclicity(h_at * (1 - 1e-9))
    start = weights.double().requires_grad_()
    gradients = [torch.autograd.grad(f(start), start)[0] for f in (below, above)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=0.0)


def test_logdet_knows_its_domain_element_by_element() -> None:
    weights = random_weights(400, 5, 5, scale=0.5, seed=5)
    for s in (0.6, 1.0):
        radius = torch.linalg.eigvals(weights.square()).abs().amax(-1)
        batch = weights.clone().requires_grad_()
        h = LogdetAcyclicity(s)(batch)
        assert torch.equal(h.isfinite(), radius < s)
        assert 0.1 < h.isfinite().double().mean() < 0.99
        (gradient,) = torch.autograd.grad(h[h.isfinite()].sum(), batch)
        assert gradient.isfinite().all()
        assert torch.equal(gradient.abs().sum((-2, -1)) > 0, radius < s)


def test_logdet_at_the_singular_border_is_infinite_with_gradient_zero() -> None:
    border = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).requires_grad_()
    h = LogdetAcyclicity(1.0)(border)
    assert h.item() == math.inf
    assert not torch.autograd.grad(h, border)[0].any()
    with pytest.raises(DataError, match="positive"):
        LogdetAcyclicity(0.0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_union_bounds_every_mixture(function) -> None:
    rng = np.random.default_rng(7)
    archetypes = random_weights(3, 6, 6, scale=0.25, seed=7)
    bound = function.of_squared(union_squared(archetypes))
    assert bound.isfinite()
    mixture = torch.as_tensor(rng.dirichlet(np.full(3, 0.3), size=500))
    h = function(torch.einsum("nk,kab->nab", mixture, archetypes))
    assert (h <= bound).all()
    assert h.max() > 1e-3 * bound
    corner = function(archetypes[:1])
    torch.testing.assert_close(function.of_squared(union_squared(archetypes[None, :1])), corner)


def test_mixtures_of_an_acyclic_union_are_acyclic_and_the_gradient_exists_at_zero() -> None:
    rng = np.random.default_rng(8)
    mask = (permuted_dags(1, 7, seed=8)[0] != 0).double()
    archetypes = (random_weights(4, 7, 7, scale=1.0, seed=9) * mask).requires_grad_()
    h = ExpmAcyclicity().of_squared(union_squared(archetypes))
    assert h.item() == 0.0
    assert not torch.autograd.grad(h, archetypes)[0].any()
    mixture = torch.as_tensor(rng.dirichlet(np.ones(4), size=50))
    assert is_acyclic(torch.einsum("nk,kab->nab", mixture, archetypes)).all()


def test_registry_builds_each_function() -> None:
    assert isinstance(ACYCLICITY["expm"](), ExpmAcyclicity)
    assert isinstance(ACYCLICITY["logdet"](), LogdetAcyclicity)
    assert isinstance(ACYCLICITY["poly"](), PolyAcyclicity)
    assert isinstance(ACYCLICITY["spectral"](), SpectralAcyclicity)


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("p", [1, 2, 3, 12, 31])
def test_poly_agrees_with_the_matrix_power(p: int, scale: float) -> None:
    weights = random_weights(p, p, scale=scale)
    power = np.linalg.matrix_power(np.eye(p) + weights.square().numpy() / p, p)
    wanted = np.trace(power) - p
    h = PolyAcyclicity(linear_until=1e300)(weights)
    assert float(h) == pytest.approx(wanted, rel=1e-9, abs=1e-13 * p)


@pytest.mark.parametrize("p", [2, 5, 20, 60])
def test_spectral_approaches_the_largest_eigenvalue(p: int) -> None:
    weights = random_weights(p, p, scale=1.0)
    radius = np.abs(np.linalg.eigvals(weights.square().numpy())).max()
    assert float(SpectralAcyclicity(num_steps=4000)(weights)) == pytest.approx(radius, rel=2e-3)
    assert float(SpectralAcyclicity()(weights)) == pytest.approx(radius, rel=0.15)


@pytest.mark.parametrize("function", [PolyAcyclicity(), SpectralAcyclicity()])
@pytest.mark.parametrize("p", [1, 2, 7, 40])
def test_others_are_exactly_zero_on_dags(function, p: int) -> None:
    assert not function(permuted_dags(5, p, scale=3.0)).any()


def test_spectral_of_a_cycle_is_the_geometric_mean_of_its_squared_weights() -> None:
    """On which power iteration itself goes round in circles."""
    weights = cycle(9, 9) * torch.linspace(0.5, 2.0, 9, dtype=torch.float64)[:, None]
    wanted = weights.square().sum(-1).log().mean().exp()
    torch.testing.assert_close(SpectralAcyclicity(num_steps=4500)(weights), wanted, rtol=1e-3, atol=0.0)
