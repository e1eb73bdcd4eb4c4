"""Kronecker-sum matrix Gaussians against dense Gaussians of the vectorised matrix."""

from __future__ import annotations

import math

import networkx as nx
import pyro
import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal

from embergraph.models.parts.errors import DataError, NumericalError
from embergraph.models.parts.kronecker_sum import KroneckerSumNormal, ScaledKroneckerSumNormal

DOUBLE = {"dtype": torch.double}
N, P = 4, 3
STRUCTURES = pytest.mark.parametrize("structure", ["sum", "product"])


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def positive(size, *batch):
    root = torch.randn(*batch, size, size, **DOUBLE)
    return root @ root.mT / size + 0.5 * torch.eye(size, **DOUBLE)


def dense(row, col, structure):
    """Omega of the row-major vectorised matrix."""
    if structure == "product":
        return torch.kron(row, col)
    return torch.kron(row, torch.eye(len(col), **DOUBLE)) + torch.kron(torch.eye(len(row), **DOUBLE), col)


def tree(size, seed=1):
    """Precision with the repeated eigenvalues of a tree."""
    adjacency = torch.tensor(nx.to_numpy_array(nx.barabasi_albert_graph(size, 1, seed=seed)))
    root = adjacency.sum(0).rsqrt()
    return torch.eye(size, **DOUBLE) + root[:, None] * adjacency * root / 1.1


@STRUCTURES
def test_density_and_variance_are_those_of_the_dense_gaussian(structure):
    row, col, x = positive(N), positive(P), torch.randn(5, N, P, **DOUBLE)
    matrices = KroneckerSumNormal(row, col, structure)
    omega = dense(row, col, structure)
    exact = MultivariateNormal(torch.zeros(N * P, **DOUBLE), precision_matrix=omega)
    torch.testing.assert_close(matrices.log_prob(x), exact.log_prob(x.flatten(-2)), rtol=2e-12, atol=0)
    torch.testing.assert_close(matrices.log_det(), torch.logdet(omega), rtol=2e-12, atol=1e-13)
    torch.testing.assert_close(matrices.variance, omega.inverse().diagonal().view(N, P), rtol=2e-12, atol=0)
    assert matrices.event_shape == (N, P)
    assert not matrices.mean.any()


def test_a_factor_of_a_sum_may_be_indefinite_or_zero():
    col, x = positive(P), torch.randn(N, P, **DOUBLE)
    shift = 0.4 * torch.eye(N, **DOUBLE)
    same = KroneckerSumNormal(positive(N) * 0 - shift, col + 0.4 * torch.eye(P, **DOUBLE)).log_prob(x)
    rows = MultivariateNormal(torch.zeros(P, **DOUBLE), precision_matrix=col).log_prob(x).sum()
    torch.testing.assert_close(same, rows)
    torch.testing.assert_close(KroneckerSumNormal(0 * shift, col).log_prob(x), rows)


@STRUCTURES
def test_gradients_are_those_of_the_dense_density(structure):
    row, col, x = positive(N), positive(P), torch.randn(N, P, **DOUBLE)

    def exact(row, col, x):
        omega, flat = dense(row, col, structure), x.flatten()
        return 0.5 * torch.logdet(omega) - 0.5 * flat @ omega @ flat

    found = jacobian(
        lambda *a: KroneckerSumNormal(*a[:2], structure, validate_args=False).log_prob(a[2]), (row, col, x)
    )
    wanted = jacobian(exact, (row, col, x))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradient_at_a_degenerate_spectrum():
    row, col = torch.eye(4, **DOUBLE).requires_grad_(), torch.eye(3, **DOUBLE).requires_grad_()
    KroneckerSumNormal(row, col).log_det().backward()
    torch.testing.assert_close(row.grad, 1.5 * torch.eye(4, **DOUBLE))
    torch.testing.assert_close(col.grad, 2.0 * torch.eye(3, **DOUBLE))


@STRUCTURES
@pytest.mark.parametrize("seed", [0, 1])
def test_draws_have_the_dense_covariance(structure, seed):
    row, col, draws = positive(3), positive(2), 40_000
    torch.manual_seed(seed)
    x = KroneckerSumNormal(row, col, structure).sample((draws,)).flatten(-2)
    covariance = dense(row, col, structure).inverse()
    error = x.T @ x / draws - covariance
    standard = ((covariance**2 + covariance.diagonal()[:, None] * covariance.diagonal()) / draws).sqrt()
    assert (error / standard).abs().max() < 4.5
    assert (x.mean(0).abs() / (covariance.diagonal() / draws).sqrt()).max() < 4.5


def published_draw(row, col):
    """Without the inner rotation of the noise, as published code has it."""
    (lam, left), (mu, right) = torch.linalg.eigh(row), torch.linalg.eigh(col)
    return left @ (torch.randn(len(row), len(col), **DOUBLE) / (lam[:, None] + mu).sqrt()) @ right.T


def test_draws_do_not_depend_on_the_choice_of_eigenvectors():
    row, col = tree(50), tree(40)
    noise = torch.randn(50, 50, **DOUBLE) * 1e-15
    moved = row + noise + noise.T

    def difference(draw):
        torch.manual_seed(3)
        first = draw(row, col)
        torch.manual_seed(3)
        return (draw(moved, col) - first).abs().max()

    assert difference(lambda *factors: KroneckerSumNormal(*factors).sample()) < 1e-9
    assert difference(published_draw) > 0.1


@STRUCTURES
def test_transposition_swaps_the_factors(structure):
    row, col, x = positive(N), positive(P), torch.randn(N, P, **DOUBLE)
    matrices = KroneckerSumNormal(row, col, structure)
    swapped = KroneckerSumNormal(col, row, structure)
    torch.testing.assert_close(matrices.log_prob(x), swapped.log_prob(x.T))
    torch.testing.assert_close(matrices.variance, swapped.variance.T)


@STRUCTURES
def test_batches_are_loops(structure):
    row, col, x = positive(N, 5, 1), positive(P, 2), torch.randn(5, 2, N, P, **DOUBLE)
    matrices = KroneckerSumNormal(row, col, structure)
    loop = [[KroneckerSumNormal(row[i, 0], col[j], structure) for j in range(2)] for i in range(5)]
    exact = torch.stack([torch.stack([one.log_prob(x[i, j]) for j, one in enumerate(r)]) for i, r in enumerate(loop)])
    assert matrices.batch_shape == (5, 2)
    torch.testing.assert_close(matrices.log_prob(x), exact)
    assert matrices.sample((7,)).shape == (7, 5, 2, N, P)
    torch.testing.assert_close(matrices.variance[3, 1], loop[3][1].variance)
    wide = matrices.expand((6, 5, 2))
    assert wide.batch_shape == wide.log_prob(x).shape == (6, 5, 2)
    torch.testing.assert_close(wide.log_prob(x)[4], exact)
    assert wide.variance.shape == wide.sample().shape == (6, 5, 2, N, P)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("structure", "row", "col"),
    [("sum", -1.0, 1.0), ("sum", -3.0, 1.0), ("product", -1.0, 1.0), ("product", -1.0, -1.0), ("product", 0.0, 1.0)],
)
def test_outside_of_the_cone(structure, row, col, validate):
    row, col = row * torch.eye(N, **DOUBLE), (col * torch.eye(P, **DOUBLE)).requires_grad_()
    if validate:
        with pytest.raises(DataError, match="smallest eigenvalues"):
            KroneckerSumNormal(row, col, structure, validate_args=True)
        return
    matrices = KroneckerSumNormal(row, col, structure, validate_args=False)
    log_prob = matrices.log_prob(torch.randn(N, P, **DOUBLE))
    assert log_prob == matrices.log_det() == -math.inf
    assert matrices.log_prob(torch.full((N, P), 1e200, **DOUBLE)) == -math.inf
    log_prob.backward()
    assert col.grad.isfinite().all()
    for ask in (matrices.sample, lambda: matrices.variance):
        with pytest.raises(NumericalError, match="not positive definite"):
            ask()


def test_one_bad_factor_of_a_batch_leaves_the_others_alone():
    row, col, x = positive(N, 3), positive(P), torch.randn(N, P, **DOUBLE)
    broken = row.clone()
    broken[0] *= -5
    broken[1, 0, 0] = math.nan
    found = KroneckerSumNormal(broken, col, validate_args=False).log_prob(x)
    assert found[0] == found[1] == -math.inf
    torch.testing.assert_close(found[2], KroneckerSumNormal(row[2], col).log_prob(x))


def test_bad_arguments_are_named():
    row, col = positive(N), positive(P)
    with pytest.raises(DataError, match="structure: found 'tensor'"):
        KroneckerSumNormal(row, col, "tensor")
    with pytest.raises(DataError, match="col_precision: found shape"):
        KroneckerSumNormal(row, col[:2])
    with pytest.raises(DataError, match="row_precision: found a matrix that is not symmetric"):
        KroneckerSumNormal(row + torch.triu(torch.ones(N, N, **DOUBLE), 1), col, validate_args=True)
    with pytest.raises(DataError, match="not finite"):
        KroneckerSumNormal(row * math.nan, col, validate_args=True)
    with pytest.raises(DataError, match="log_row_scale: found shape"):
        ScaledKroneckerSumNormal(torch.zeros(P), torch.zeros(P), row, col)
    with pytest.raises(DataError, match="zeros: found 'missing'"):
        ScaledKroneckerSumNormal(torch.zeros(N), torch.zeros(P), row, col, zeros="missing")
    with pytest.raises(ValueError, match="support"):
        KroneckerSumNormal(row, col, validate_args=True).log_prob(torch.full((N, P), math.nan, **DOUBLE))


@STRUCTURES
def test_scaled_density_is_that_of_the_dense_gaussian(structure):
    row, col = positive(N), positive(P)
    u, v = torch.randn(N, **DOUBLE), torch.randn(P, **DOUBLE)
    scaled = ScaledKroneckerSumNormal(u, v, row, col, structure)
    scale = (u[:, None] + v).exp().flatten()
    covariance = scale[:, None] * dense(row, col, structure).inverse() * scale
    exact = MultivariateNormal(torch.zeros(N * P, **DOUBLE), covariance)
    x = torch.randn(5, N, P, **DOUBLE)
    torch.testing.assert_close(scaled.log_prob(x), exact.log_prob(x.flatten(-2)), rtol=1e-10, atol=0)
    torch.testing.assert_close(scaled.variance, covariance.diagonal().view(N, P))
    torch.manual_seed(1)
    draw = scaled.sample()
    torch.manual_seed(1)
    torch.testing.assert_close(draw, scaled.unscaled.sample() * (u[:, None] + v).exp())


def test_extreme_scales_stay_finite():
    row, col, x = positive(N), positive(P), torch.randn(N, P, **DOUBLE)
    log_scale = torch.full((N,), 345.0, **DOUBLE)  # 1e150
    scaled = ScaledKroneckerSumNormal(log_scale, torch.zeros(P, **DOUBLE), row, col)
    exact = KroneckerSumNormal(row, col).log_prob(x) - N * P * 345.0
    torch.testing.assert_close(scaled.log_prob(x * log_scale[:, None].exp()), exact)


def test_scaled_batches_decompose_shared_factors_once(monkeypatch):
    row, col = positive(N), positive(P)
    u, v = torch.randn(6, 1, N, **DOUBLE), torch.randn(2, P, **DOUBLE)
    x = torch.randn(6, 2, N, P, **DOUBLE)
    sizes, eigvalsh = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda a: (sizes.append(tuple(a.shape)), eigvalsh(a))[1])
    scaled = ScaledKroneckerSumNormal(u, v, row, col)
    found = scaled.log_prob(x)
    scaled.expand((3, 6, 2)).log_prob(x)
    assert sizes == [(N, N), (P, P)]
    for i, j in ((0, 0), (5, 1)):
        torch.testing.assert_close(found[i, j], ScaledKroneckerSumNormal(u[i, 0], v[j], row, col).log_prob(x[i, j]))
    assert scaled.batch_shape == (6, 2)
    wide = scaled.expand((3, 6, 2))
    assert wide.log_prob(x).shape == (3, 6, 2)
    assert wide.sample((4,)).shape == (4, 3, 6, 2, N, P)
    assert wide.variance.shape == wide.mean.shape == (3, 6, 2, N, P)


def test_structural_zeros_carry_no_jacobian():
    row, col = positive(N), positive(P)
    u, v = torch.randn(N, **DOUBLE), torch.randn(P, **DOUBLE)
    x = torch.randn(2, N, P, **DOUBLE)
    gaussian, structural = (ScaledKroneckerSumNormal(u, v, row, col, zeros=z) for z in ("gaussian", "structural"))
    torch.testing.assert_close(structural.log_prob(x), gaussian.log_prob(x))
    x[0, 1, 2] = x[0, 3, 0] = 0.0
    saved = u[1] + v[2] + u[3] + v[0] + math.log(2 * math.pi)
    expected = gaussian.log_prob(x) + torch.stack([saved, torch.zeros_like(saved)])
    torch.testing.assert_close(structural.log_prob(x), expected)


def test_in_pyro_under_a_plate_of_replicates_and_vectorised_draws():
    x = torch.randn(2, N, P, **DOUBLE)
    root, u = torch.randn(7, N, N, **DOUBLE), torch.randn(7, 2, N, **DOUBLE)

    def model(root, u, x=None):
        row = (root @ root.mT + torch.eye(N, **DOUBLE)).unsqueeze(-3)  # (*draw, 1, n, n)
        with pyro.plate("replicate", 2, dim=-1):
            scaled = ScaledKroneckerSumNormal(u, torch.zeros(P, **DOUBLE), row, torch.eye(P, **DOUBLE))
            return pyro.sample("expression", scaled, obs=x)

    def log_density(*args):
        trace = pyro.poutine.trace(model).get_trace(*args)
        trace.compute_log_prob()
        return trace.nodes["expression"]["log_prob"]

    with pyro.plate("draw", 7, dim=-2):
        found = log_density(root, u, x)
        assert model(root, u).shape == (7, 2, N, P)
    assert found.shape == (7, 2)
    torch.testing.assert_close(found[4], log_density(root[4], u[4], x))
    with pyro.plate("replicate", 3):
        assert pyro.sample("x", KroneckerSumNormal(positive(N), positive(P))).shape == (3, N, P)
