"""One number a pair by which edges are ranked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ...models.parts.errors import DataError
from .edge_state import off_diagonal

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .edge_state import AxisEdges, EdgeState

__all__ = ["ScoreKind", "edge_scores", "empty_graph_z"]

ScoreKind = Literal["auto", "probability", "z", "scaling", "compromise"]


def edge_scores(
    state: EdgeState,
    S_row: Float[Tensor, "n n"],
    S_col: Float[Tensor, "p p"],
    num_matrices: int = 1,
    kind: ScoreKind = "auto",
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "p p"]]:
    """Score of every pair of rows and of columns: larger means more likely an edge; zero diagonals.

    Parameters
    ----------
    state
        Fitted edges.
    S_row, S_col
        Means of Z Z' and Z' Z over the matrices, at neutral scales.
    num_matrices
        Number of matrices.
    kind
        ``"auto"``: posterior log-odds, which rank like the probability where that is rounded to 1, shifted to be
        at least 0. ``"probability"``: of the edge. ``"z"``: absolute z score given the other edges. ``"scaling"``:
        absolute z score in the empty graph, i.e. the off-diagonal of the scaled Gram matrix over its standard
        deviation. ``"compromise"``: the sum of the last two.
    """
    kinds = ("auto", "probability", "z", "scaling", "compromise")
    if kind not in kinds:
        raise DataError(f"score: found {kind!r}; wanted one of {', '.join(kinds)}")
    n, p = len(S_row), len(S_col)
    return (
        _axis_score(state.row, S_row, num_matrices * p, kind),
        _axis_score(state.col, S_col, num_matrices * n, kind),
    )


def _axis_score(axis: AxisEdges, S: Tensor, num_samples: int, kind: ScoreKind) -> Tensor:
    if kind == "auto":
        others = off_diagonal(axis.posterior_log_odds)
        return (axis.posterior_log_odds - axis.posterior_log_odds[others].min()) * others
    if kind == "probability":
        return axis.probability
    if kind == "z":
        return axis.z.abs()
    scaling = empty_graph_z(S, num_samples)
    return scaling if kind == "scaling" else scaling + axis.z.abs()


def empty_graph_z(S: Tensor, num_samples: int) -> Tensor:
    """Correlations of the scaled rows times the root of the number of samples: standard normal without edges."""
    root = S.diagonal().sqrt()
    return (num_samples**0.5 * (S / (root[:, None] * root)).abs()).fill_diagonal_(0.0)
