"""The sparse rotation on planted matrices: recovery, what it leaves alone, and how sure it says it is."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from embergraph.guides.parts.sparse_rotation import sparse_rotation
from embergraph.models.parts.errors import DataError, NumericalError


def orthogonal(d: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q


def planted(E: int, d: int, targets: tuple[int, int], seed: int, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """Means with shifts of 5 in a few latents, rotated; and the rotation that was used."""
    generator = torch.Generator().manual_seed(seed)
    sparse = torch.zeros(E, d, dtype=torch.float64)
    for e in range(E):
        num = int(torch.randint(targets[0], targets[1] + 1, (), generator=generator))
        where = torch.randperm(d, generator=generator)[:num]
        sparse[e, where] = 5.0 * torch.randn(num, generator=generator, dtype=torch.float64).sign()
    sparse = sparse + noise * torch.randn(E, d, generator=generator, dtype=torch.float64)
    Q = orthogonal(d, generator)
    return sparse @ Q.mT, Q


def recovered(R: Tensor, Q: Tensor) -> float:
    """Share of columns that agree up to order and sign."""
    cosines = (R.mT @ Q).abs()
    rows, columns = linear_sum_assignment(-cosines.numpy())
    return float((cosines[rows, columns] > 0.95).double().mean())


@pytest.mark.parametrize(
    ("E", "d", "targets", "seeds", "least"),
    [
        (100, 15, (1, 3), 1, 1.0),
        (50, 15, (1, 3), 2, 0.95),
        (30, 15, (1, 3), 2, 0.8),
        (300, 15, (3, 6), 1, 1.0),
        (20, 4, (0, 1), 4, 1.0),
        (2, 2, (1, 1), 6, 1.0),
    ],
)
def test_planted_axes_are_recovered(E: int, d: int, targets: tuple[int, int], seeds: int, least: float) -> None:
    cases = [(*planted(E, d, targets, seed), seed) for seed in range(seeds)]
    cases = [case for case in cases if int(torch.linalg.matrix_rank(case[0], tol=2.0)) == d]  # axes that were shifted
    assert cases
    found = [recovered(sparse_rotation(M, seed=seed).matrix, Q) for M, Q, seed in cases]
    assert sum(found) / len(found) >= least
    assert (
        min(recovered(torch.eye(d, dtype=torch.float64), Q) for _, Q, _ in cases) < 0.5
    )  # there was something to find


def test_too_few_environments_are_told_from_enough() -> None:
    assert sparse_rotation(planted(100, 15, (1, 3), 0)[0]).agreement > 0.8
    M, Q = planted(100, 15, (3, 6), 0)
    too_few = sparse_rotation(M)
    assert too_few.agreement < 0.2
    assert recovered(too_few.matrix, Q) < 0.95


def test_without_noise_the_answer_is_exact() -> None:
    M, Q = planted(20, 4, (1, 2), 0, noise=0.0)
    cosines = (sparse_rotation(M).matrix.mT @ Q).abs()
    torch.testing.assert_close(cosines.amax(0), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-10)


def test_two_latents_against_a_grid_of_angles() -> None:
    M, _ = planted(12, 2, (1, 1), 3)
    angle = torch.linspace(0, torch.pi / 2, 20001, dtype=torch.float64)
    c, s = angle.cos(), angle.sin()
    grid = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    lowest = float((M @ grid).abs().sum((-1, -2)).min())
    found = sparse_rotation(M)
    assert found.cost_after == pytest.approx(float((M @ found.matrix).abs().sum()))
    assert found.cost_before == pytest.approx(float(M.abs().sum()))
    assert lowest <= found.cost_after + 1e-9 <= 1.02 * lowest  # the polish prefers small entries 0 to the lowest sum


@pytest.mark.parametrize("seed", range(4))
def test_a_second_call_returns_the_identity(seed: int) -> None:
    M, _ = planted(60, 8, (1, 3), seed)
    first = sparse_rotation(M, seed=seed)
    second = sparse_rotation(M @ first.matrix, seed=seed + 1)
    assert first.accepted
    assert not second.accepted
    torch.testing.assert_close(second.matrix, torch.eye(8, dtype=torch.float64), rtol=0, atol=0)
    assert second.cost_after == second.cost_before


def test_decoder_output_is_unchanged() -> None:
    M, _ = planted(40, 6, (1, 2), 1)
    R = sparse_rotation(M).matrix
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    z = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(R.mT @ R, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close((z @ R) @ (R.mT @ W), z @ W, rtol=0, atol=1e-12)
    assert float(((z @ R) @ (R @ W) - z @ W).abs().max()) > 1  # the other way round is noticed


def test_labels_are_the_nearest_to_the_identity() -> None:
    """Of all orders and signs of the columns the one with the largest trace, by enumeration."""
    M, _ = planted(20, 4, (1, 1), 5)
    R = sparse_rotation(M).matrix
    best = max(sum(abs(float(R[i, order[i]])) for i in range(4)) for order in itertools.permutations(range(4)))
    assert float(R.trace()) == pytest.approx(best)


def test_latents_that_no_environment_moves_do_no_harm() -> None:
    M, _ = planted(3, 2, (1, 1), 1, noise=0.0)
    wide = torch.cat([M, torch.zeros(3, 4, dtype=torch.float64)], 1)
    wide = wide @ orthogonal(6, torch.Generator().manual_seed(2))
    found = sparse_rotation(wide)
    moved = wide @ found.matrix
    assert found.agreement > 0.9
    assert int((moved.abs() > 1e-8 * moved.abs().max()).sum(1).max()) == 1


def test_scale_and_precision_of_the_input() -> None:
    M, _ = planted(30, 5, (1, 2), 2)
    found = sparse_rotation(M)
    torch.testing.assert_close(sparse_rotation(1e-6 * M).matrix, found.matrix, rtol=0, atol=1e-9)
    single = sparse_rotation(M.float())
    assert single.matrix.dtype == torch.float32
    torch.testing.assert_close(single.matrix.double(), found.matrix, rtol=0, atol=1e-5)


def test_random_state_and_seeds() -> None:
    M, _ = planted(12, 5, (1, 3), 0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again = (sparse_rotation(M, seed=7) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.matrix, again.matrix)
    own = sparse_rotation(M, seed=3, generator=torch.Generator().manual_seed(7))
    assert torch.equal(own.matrix, first.matrix)


def test_nothing_to_rotate() -> None:
    found = sparse_rotation(torch.zeros(3, 4))
    assert torch.equal(found.matrix, torch.eye(4))
    assert (found.accepted, found.agreement) == (False, 0.0)
    one = sparse_rotation(torch.tensor([[1.0], [-2.0]]))
    assert torch.equal(one.matrix, torch.eye(1))
    assert (one.accepted, one.agreement) == (False, 1.0)


def test_bad_input() -> None:
    with pytest.raises(DataError, match="M: found shape"):
        sparse_rotation(torch.zeros(3))
    with pytest.raises(DataError, match="num_restarts: found 0"):
        sparse_rotation(torch.eye(2), num_restarts=0)
    with pytest.raises(NumericalError, match="M: found NaN"):
        sparse_rotation(torch.tensor([[torch.nan, 1.0]]))
