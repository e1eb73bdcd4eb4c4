"""Sparse graphs of both axes by empirical Bayes: spike and slab on every pair, damped Newton steps on the weights.

Each round linearises the likelihood of every entry at the current graph, which gives a debiased entry y with standard
error sqrt(t), hence a Bayes factor of "edge" against "no edge"; only likely edges stay in the precision and explain
others away. Diagonals are held at 1: with unknown row and column scales they are nearly unidentified. Everything is
invariant to row and column scales and equivariant to permutations, sign flips and transposition, since both axes are
updated from the same state.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from ...models.parts.errors import DataError, NumericalError
from .edge_curvature import block_trace, curvature, quadrature
from .edge_learning import hub_offset, learn_coefficient, learn_slab, learn_triangles
from .edge_state import AxisEdges, EdgePrior, EdgeState, check_statistics, confident_precision, off_diagonal

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["AxisEdges", "EdgePrior", "EdgeState", "confident_precision", "fit_edges", "one_round", "start"]

MIN_ROUNDS = 12
HUBS_FROM_ROUND = 6
CONE_MARGIN = 0.02  # smallest eigenvalue of Omega that a step may reach
TRIANGLES_FROM_ROUND = 6
RAMP = 0.3  # an edge enters the precision gradually between probability 1/2 and 1/2 + RAMP: a jump makes rounds cycle
STEP = 0.5
FULL_STEPS = 15  # rounds before steps shrink as 1 / rounds, which ends what cycles are left


class _Spectrum(NamedTuple):
    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n n"]


def start(
    n: int, p: int, prior_row: EdgePrior, prior_col: EdgePrior, *, device: torch.device | str | None = None
) -> EdgeState:
    """State without edges: unit precisions, prior probabilities.

    Parameters
    ----------
    n, p
        Number of rows and of columns, at least 2.
    prior_row, prior_col
        Priors of the two axes.
    device
        Where the state lives.
    """
    if min(n, p) < 2:
        raise DataError(f"start: found {n} rows and {p} columns; wanted at least 2 of each")
    row, col = _empty_axis(n, prior_row, device), _empty_axis(p, prior_col, device)
    return EdgeState(row, col, rounds=0, change=math.inf, converged=False)


def _empty_axis(size: int, prior: EdgePrior, device: torch.device | str | None) -> AxisEdges:
    identity = torch.eye(size, dtype=torch.float64, device=device)
    zeros, variance = torch.zeros_like(identity), identity.new_tensor(prior.slab_scale**2)
    eta = identity.new_tensor(prior.centre(size))
    odds = torch.where(off_diagonal(identity), eta + prior.offset(identity), zeros)
    probability = zeros if prior.kind == "gaussian" else odds.sigmoid().fill_diagonal_(0.0)
    spread = variance.expand_as(identity).clone()
    return AxisEdges(
        probability, odds, zeros, spread, zeros, identity, eta, variance, zeros.clone(), torch.zeros_like(eta)
    )


def one_round(
    state: EdgeState,
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    num_matrices: int,
    prior_row: EdgePrior,
    prior_col: EdgePrior,
) -> EdgeState:
    """One damped update of both axes from the same state.

    Parameters
    ----------
    state
        Where to start from.
    S_row, S_col
        Means of Z Z' and of Z' Z over the matrices, Z scaled to neutral row and column scales; their common overall
        scale is chosen here so that E[q] = n p.
    num_matrices
        Number m of matrices that share both graphs.
    prior_row, prior_col
        Priors of the two axes.
    """
    row_spectrum, col_spectrum = _eigh(state.row.precision), _eigh(state.col.precision)
    scale, rounds = _overall_scale(state, S_row, S_col), state.rounds + 1
    (mu_row, _), (mu_col, _) = row_spectrum, col_spectrum
    row, row_target = _axis_round(
        state.row, row_spectrum, state.col, mu_col, scale * S_row, num_matrices, prior_row, rounds
    )
    col, col_target = _axis_round(
        state.col, col_spectrum, state.row, mu_row, scale * S_col, num_matrices, prior_col, rounds
    )
    row_precision, col_precision = _damped(row, row_target, col, col_target, _step(rounds))
    change = max(
        float((row_precision - state.row.precision).abs().max()),
        float((col_precision - state.col.precision).abs().max()),
    )
    row, col = replace(row, precision=row_precision), replace(col, precision=col_precision)
    return EdgeState(_mirrored(row), _mirrored(col), rounds, change, converged=False)


def _mirrored(axis: AxisEdges) -> AxisEdges:
    """Every matrix equal to its mirror to the last bit: thresholds turn a rounding difference into an edge one way."""
    values = {field.name: getattr(axis, field.name) for field in fields(AxisEdges)}
    return AxisEdges(**{name: 0.5 * (x + x.T) if x.dim() == 2 else x for name, x in values.items()})


def fit_edges(
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    num_matrices: int,
    prior_row: EdgePrior,
    prior_col: EdgePrior,
    *,
    state: EdgeState | None = None,
    max_rounds: int = 60,
    tolerance: float = 2e-3,
) -> EdgeState:
    """Repeat `one_round` until no entry of a precision changes by more than `tolerance`.

    Parameters
    ----------
    S_row, S_col, num_matrices, prior_row, prior_col
        As in `one_round`.
    state
        Where to start; None is the empty graph.
    max_rounds
        Most rounds of this call.
    tolerance
        Largest change of a precision entry in the last round; at least 12 rounds are done.

    Raises
    ------
    DataError
        If the statistics are not symmetric, finite and of the same trace, or the number of matrices is below 1.
    NumericalError
        If the statistics give a negative quadratic form.
    """
    check_statistics(S_row, S_col, num_matrices)
    state = start(len(S_row), len(S_col), prior_row, prior_col, device=S_row.device) if state is None else state
    S_row, S_col = S_row.double(), S_col.double()
    for _ in range(max_rounds):
        state = one_round(state, S_row, S_col, num_matrices, prior_row, prior_col)
        if state.rounds >= MIN_ROUNDS and state.change < tolerance:
            return replace(state, converged=True)
    return state


def _eigh(precision: Tensor) -> _Spectrum:
    return _Spectrum(*torch.linalg.eigh(precision))


def _overall_scale(state: EdgeState, S_row: Tensor, S_col: Tensor) -> Tensor:
    """Factor on both statistics that makes the quadratic form equal to its expectation n p."""
    form = (state.row.precision * S_row).sum() + (state.col.precision * S_col).sum()
    if not bool(form > 0):
        raise NumericalError(f"one_round: the quadratic form of the statistics is {float(form):.3g}; wanted above 0")
    return len(S_row) * len(S_col) / form


def _axis_round(
    axis: AxisEdges,
    own: _Spectrum,
    other: AxisEdges,
    mu: Tensor,
    S: Tensor,
    num_matrices: int,
    prior: EdgePrior,
    rounds: int,
) -> tuple[AxisEdges, Tensor]:
    """New posterior of every edge of one axis, and the precision that the damped step aims at."""
    H = curvature(own.values, own.vectors, quadrature(mu))
    t = _error_variance(H, other, num_matrices)
    y = axis.precision + (block_trace(own.values, own.vectors, mu) - S) / H
    s2, offset = axis.slab_variance, _offset(axis, prior, rounds)
    evidence = 0.5 * (y**2 / t * s2 / (t + s2) - torch.log1p(s2 / t))
    odds = (axis.log_odds + offset + evidence).fill_diagonal_(0.0)
    probability = torch.lerp(axis.probability, odds.sigmoid().fill_diagonal_(0.0), _step(rounds))
    mean, variance = y * s2 / (s2 + t), t * s2 / (s2 + t)
    updated = AxisEdges(
        probability,
        odds,
        mean,
        variance,
        z=(y / t.sqrt()).fill_diagonal_(0.0),
        precision=axis.precision,
        log_odds=learn_coefficient(
            axis.log_odds, torch.ones_like(y), offset, probability, prior.centre(len(y)), prior.log_odds_sd
        ),
        slab_variance=learn_slab(probability, mean, variance, prior),
        triangles=axis.triangles,
        closure=axis.closure,
    )
    if prior.closure_sd is not None and rounds >= TRIANGLES_FROM_ROUND:
        updated = learn_triangles(updated, offset, prior.closure_sd, _step(rounds))
    if prior.kind == "gaussian":
        return _dense(updated, axis.slab_variance if rounds > 1 else None, y, t, prior)
    target = _entry_weight(probability) * probability * mean
    return updated, target.fill_diagonal_(1.0)


def _error_variance(H: Tensor, other: AxisEdges, num_matrices: int) -> Tensor:
    """Squared standard error t of each entry.

    Two corrections of 1 / (m H). Edges that are not in the other axis's precision yet widen its true spectrum, and a
    spectrum of variance v raises the variance of a scaled Gram entry by 1 + v / 4 (second order at the identity). The
    scales that were fitted take up n / (n + 2) of it (exact for Gaussian rows of unit norm in every column).
    """
    n, uncertain = len(H), other.probability < 1
    edges = (other.probability * (other.mean**2 + other.variance)).where(uncertain, other.precision**2)
    inside = (other.precision**2).sum() - len(other.precision)
    missing = ((edges.sum() - edges.diagonal().sum() - inside) / len(other.precision)).clamp(min=0.0)
    return (1 + missing / 4) * n / (n + 2) / (num_matrices * H)


def _offset(axis: AxisEdges, prior: EdgePrior, rounds: int) -> Tensor:
    offset = prior.offset(axis.precision) + axis.closure * axis.triangles
    if prior.hubs is not None and rounds >= HUBS_FROM_ROUND:
        offset = offset + hub_offset(axis.probability, prior.hubs)
    return offset


def _step(rounds: int) -> float:
    return STEP * min(1.0, FULL_STEPS / rounds)


def _entry_weight(probability: Tensor) -> Tensor:
    return ((probability - 0.5) / RAMP).clamp(0.0, 1.0)


def _dense(axis: AxisEdges, s2: Tensor | None, y: Tensor, t: Tensor, prior: EdgePrior) -> tuple[AxisEdges, Tensor]:
    """Every entry shrunk by a normal prior, its variance what the entries of the empty graph vary by beyond errors.

    Under s ~ HalfNormal(slab_scale) the mode of s2 solves s2^2 / slab_scale^2 + pairs (s2 - excess) = 0. Learned again
    in later rounds, s2 and the entries would drive each other.
    """
    if s2 is None:
        pairs, width = 0.5 * len(y) * (len(y) - 1), prior.slab_scale**2
        excess = (y**2 - t)[off_diagonal(y)].mean().clamp(min=1e-8)
        s2 = 0.5 * width * pairs * (torch.sqrt(1 + 4 * excess / (pairs * width)) - 1)
    mean, variance = y * s2 / (s2 + t), t * s2 / (s2 + t)
    axis = replace(axis, mean=mean, variance=variance, slab_variance=s2, probability=off_diagonal(y).to(y))
    return axis, mean.clone().fill_diagonal_(1.0)


def _damped(
    row: AxisEdges, row_target: Tensor, col: AxisEdges, col_target: Tensor, length: float
) -> tuple[Tensor, Tensor]:
    """Step towards the targets, halved until Omega is positive definite with a margin; zeros of a target at once."""
    for _ in range(12):
        new = [
            torch.lerp(axis.precision, target, length).masked_fill_(target == 0, 0.0)
            for axis, target in ((row, row_target), (col, col_target))
        ]
        if bool(sum(torch.linalg.eigvalsh(precision)[0] for precision in new) > CONE_MARGIN):
            return new[0], new[1]
        length /= 2
    return row.precision, col.precision
