"""Gates: definitions, derivatives, exact zeros, and that they exclude no vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import wrightomega
from torch import Tensor

from embergraph.models.parts.gates import GATE_WEIGHTS, GATES, entmax15, softmax_gate, sparsemax

DOUBLE = {"dtype": torch.double}


def scores(seed: int, d: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(d, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def by_root(s: np.ndarray, power: float, factor: float) -> np.ndarray:
    """max(factor s - t, 0)^power with t found by bisection."""
    x = factor * s
    t = brentq(lambda t: (np.clip(x - t, 0, None) ** power).sum() - 1, x.min() - 2, x.max(), xtol=1e-15)
    return np.clip(x - t, 0, None) ** power


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("d", "scale"), [(1, 1.0), (2, 1.0), (7, 0.3), (7, 5.0), (40, 1.0)])
def test_weights_meet_their_definitions(seed: int, d: int, scale: float) -> None:
    s = scores(seed, d, scale)
    for found, wanted in (
        (sparsemax(s), by_root(s.numpy(), 1.0, 1.0)),
        (entmax15(s), by_root(s.numpy(), 2.0, 0.5)),
        (GATE_WEIGHTS["softmax"](s), (s.exp() / s.exp().sum()).numpy()),
    ):
        assert found.numpy() == pytest.approx(wanted, abs=1e-10)
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_sparsemax_is_the_nearest_point_of_the_simplex(seed: int) -> None:
    s = scores(seed, 5)
    corners = torch.distributions.Dirichlet(torch.full((5,), 0.3, **DOUBLE))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        others = corners.sample((20_000,))
    assert float((sparsemax(s) - s).norm()) <= float((others - s).norm(dim=-1).min())


@pytest.mark.parametrize("name", sorted(GATES))
def test_gates_are_vectors_times_their_weights(name: str) -> None:
    v = torch.stack([scores(seed, 6) for seed in range(3)])
    assert GATES[name](v, 0.4).equal(v * GATE_WEIGHTS[name](v.abs() / 0.4))
    assert GATES[name](v[1], 0.4).equal(GATES[name](v, 0.4)[1])
    assert GATES[name](v.float(), 0.4).dtype == torch.float32


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_derivatives_of_the_published_gate(seed: int, temperature: float) -> None:
    v = scores(seed, 5)
    found = torch.autograd.functional.jacobian(lambda v: softmax_gate(v, temperature), v)
    s = (v.abs() / temperature).softmax(-1)
    wanted = -(v * s)[:, None] * (s * v.sign()) / temperature
    wanted += (s * (1 + v.abs() / temperature)).diag()  # s_i (1 + |v_i| (1 - s_i) / T) on the diagonal
    assert found.numpy() == pytest.approx(wanted.numpy(), abs=1e-12)


@pytest.mark.parametrize("d", [2, 10, 200])
def test_start_shrinks_every_gradient_by_the_number_of_latents(d: int) -> None:
    for name in ("softmax", "sparsemax", "entmax15"):
        jacobian = torch.autograd.functional.jacobian(lambda v: GATES[name](v, 0.05), torch.zeros(d, **DOUBLE))  # noqa: B023
        assert jacobian.numpy() == pytest.approx(np.eye(d) / d, abs=1e-12)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
@pytest.mark.parametrize("seed", range(5))
def test_gradients_of_sparse_weights(name: str, seed: int) -> None:
    s = scores(seed, 8, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(GATE_WEIGHTS[name], s, eps=1e-7, atol=1e-5)
    jacobian = torch.autograd.functional.jacobian(GATE_WEIGHTS[name], s.detach())
    zero = GATE_WEIGHTS[name](s.detach()) == 0
    assert zero.any()
    assert not jacobian[zero].any()
    assert not jacobian[:, zero].any()


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_sparse_weights_stay_finite_at_ties_and_extremes(name: str) -> None:
    for s in (torch.zeros(4), torch.tensor([3.0, 3.0, -1.0]), torch.tensor([1e4, 0.0, -1e4]), torch.tensor([2.0])):
        s = s.clone().requires_grad_()
        p = GATE_WEIGHTS[name](s)
        p[0].backward()
        assert s.grad is not None
        assert bool(p.isfinite().all() & s.grad.isfinite().all())
        assert float(p.detach().sum()) == pytest.approx(1.0, abs=1e-6)


def test_order_of_sparsity() -> None:
    """One and a half lies between: softmax has no zeros, entmax some, sparsemax the most."""
    s = torch.stack([scores(seed, 20) for seed in range(20)])
    zeros = [int((GATE_WEIGHTS[name](s) == 0).sum()) for name in ("softmax", "entmax15", "sparsemax")]
    assert zeros[0] == 0 < zeros[1] < zeros[2]


def preimage(g: np.ndarray, temperature: float) -> np.ndarray:
    """v with v_i softmax(|v| / T)_i = g_i: |v_i| = T W(|g_i| Z / T) for the Z whose weights sum to one."""
    size = np.abs(g)

    def magnitudes(log_Z: float) -> np.ndarray:
        return temperature * wrightomega(np.log(size / temperature) + log_Z).real

    log_Z = brentq(lambda t: np.log((size / magnitudes(t)).sum()), -50, 1e6, xtol=1e-13, rtol=1e-15, maxiter=1000)
    return np.sign(g) * magnitudes(log_Z)


@pytest.mark.parametrize("d", [2, 5, 10])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
def test_softmax_gate_reaches_every_vector(d: int, temperature: float) -> None:
    """Random dense targets: sparsity is not enforced at any temperature."""
    for seed in range(5):
        g = scores(seed, d, 3.0)
        v = torch.from_numpy(preimage(g.numpy(), temperature))
        assert softmax_gate(v, temperature).numpy() == pytest.approx(g.numpy(), rel=1e-8)


def test_equal_shifts_need_only_a_multiple() -> None:
    g = torch.tensor([2.0, -2.0, 2.0], **DOUBLE)
    assert softmax_gate(3 * g, 0.05).numpy() == pytest.approx(g.numpy(), rel=1e-12)
