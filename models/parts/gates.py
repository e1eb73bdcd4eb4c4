"""Gates: g(v; T)_i = v_i p(|v| / T)_i, with p a map of scores to the simplex and T > 0 a temperature.

| p | source | zeros |
|---|---|---|
| softmax | Bertin (2020) | none |
| 1.5-entmax | Peters, Niculae and Martins (2019) | exact |
| sparsemax | Martins and Astudillo (2016) | exact |
| none | | v itself |

A low temperature lets one coordinate through and holds the others back. **No gate is a constraint on the number of
targets.** Every vector of R^d is the gated value of some v at every T: the gate keeps signs and zeros, and
max |g(v)| >= max |v| / d, so that it maps each orthant onto itself. It steers the optimiser towards sparse vectors and
excludes none. At v = 0 all derivatives are 1/d: with many latents a gated model starts as one without shifts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "GATES",
    "GATE_WEIGHTS",
    "entmax15",
    "entmax15_gate",
    "no_gate",
    "softmax_gate",
    "sparsemax",
    "sparsemax_gate",
]


def sparsemax(scores: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
    """Euclidean projection of the scores onto the simplex: max(s_i - t, 0) with t such that the sum is 1."""
    ordered, rank = _descending(scores)
    means = ordered.cumsum(-1) / rank
    size = (ordered > means - 1 / rank).sum(-1, keepdim=True).clamp(min=1)  # of the support; NaN has none
    threshold = means.gather(-1, size - 1) - size.to(scores).reciprocal()
    return (scores - threshold).clamp(min=0)


def entmax15(scores: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
    """Half-way between softmax and sparsemax: max(s_i / 2 - t, 0)^2 with t such that the sum is 1."""
    half = (scores - scores.amax(-1, keepdim=True).detach()) / 2
    ordered, rank = _descending(half)
    means, spreads = _running_moments(ordered, rank)
    with torch.no_grad():
        thresholds = means - ((1 - spreads).clamp(min=0) / rank).sqrt()
        size = (ordered >= thresholds).sum(-1, keepdim=True).clamp(min=1)
    mean, spread = means.gather(-1, size - 1), spreads.gather(-1, size - 1)
    # The root is taken on the support alone, where its argument is positive: elsewhere its slope is infinite.
    threshold = mean - ((1 - spread) / size).sqrt()
    return (half - threshold).clamp(min=0) ** 2


def _descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    rank = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
    return scores.sort(-1, descending=True).values, rank


def _running_moments(ordered: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and sum of squares about it, of the first 1, 2, ... values."""
    means = ordered.cumsum(-1) / rank
    return means, (ordered**2).cumsum(-1) - rank * means**2


def softmax_gate(
    v: Float[Tensor, "*batch latent"], temperature: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "*batch latent"]:
    """v_i softmax(|v| / T)_i, the published gate."""
    return v * (v.abs() / temperature).softmax(-1)


def sparsemax_gate(
    v: Float[Tensor, "*batch latent"], temperature: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "*batch latent"]:
    """v_i sparsemax(|v| / T)_i: exact zeros, whose coordinates get no gradient."""
    return v * sparsemax(v.abs() / temperature)


def entmax15_gate(
    v: Float[Tensor, "*batch latent"], temperature: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "*batch latent"]:
    """v_i entmax(|v| / T)_i of order 1.5: exact zeros, whose coordinates get no gradient."""
    return v * entmax15(v.abs() / temperature)


def no_gate(
    v: Float[Tensor, "*batch latent"], temperature: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "*batch latent"]:
    """The vector itself."""
    return v


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


GATES: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax_gate,
    "sparsemax": sparsemax_gate,
    "entmax15": entmax15_gate,
    "none": no_gate,
}

GATE_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": _softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "none": torch.ones_like,
}
"""p of every gate, for values that share the weights of another vector."""
