"""The negative binomial in the form that training needs: summed over genes, exact, and cheap to differentiate.

`torch.lgamma` and above all its derivative `torch.digamma` take most of a step with a thousand genes. In single
precision both come from Stirling's series behind a shift, log Gamma(y) = log Gamma(y + 4) - log y(y+1)(y+2)(y+3), which
needs logarithms and products only. Differences over the count are taken before rounding can hurt, so that a large
inverse dispersion turns smoothly into the Poisson distribution, and the gradient comes along with the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

if TYPE_CHECKING:
    from jaxtyping import Float

SHIFT = 4  # the terms of the series that are left out are below 4e-8 from here on
FIRST, SECOND, THIRD = 1 / 12, -1 / 360, 1 / 1260


def _reference(log_mean: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    """The score written with `torch.lgamma`: for double precision, and for derivatives beyond the first."""
    rate = (log_mean.exp() / theta).log1p()  # log(theta + mean) - log theta
    count = torch.lgamma(x + theta) - torch.lgamma(theta) + x * (log_mean - rate - theta.log())
    return (count - theta * rate).sum(-1)


def _rest(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of log Gamma(theta): series and product of the shift, and the series and poles of its derivative."""
    inverse = (theta + SHIFT).reciprocal()
    square = inverse * inverse
    pair = theta * (theta + 3)
    slope = inverse * (0.5 + inverse * (FIRST + square * (3 * SECOND + square * (5 * THIRD))))
    poles = (2 * theta + 3) * (2 * pair + 2) / (pair * (pair + 2))
    return inverse * (FIRST + square * (SECOND + square * THIRD)), pair * (pair + 2), slope + poles


def _fused(log_mean: Tensor, theta: Tensor, x: Tensor, by_theta: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Score of each row, and its derivatives by the log mean and by theta entry by entry.

    Written in place: fresh memory of this size costs more than the arithmetic on it.
    """
    series, product, slope_at_zero = _rest(theta)
    base = theta + SHIFT
    # (A - 1/2) log A - A for A = x + theta + SHIFT, less the same at x = 0, is base' log1p(x/base) + x (log A - 1).
    slope = torch.div(x, base).log1p_()
    score = slope * (base - 0.5)
    mean = log_mean.exp()
    rate = torch.div(mean, theta).log1p_()
    score.addcmul_(rate, theta, value=-1)
    slope.sub_(rate)
    excess = x - mean
    spread = mean.add_(theta)
    excess.div_(spread)
    slope.sub_(excess)
    y = torch.add(x, theta, out=rate)
    shifted = y + SHIFT
    score.addcmul_(torch.div(shifted, spread, out=spread).log_().add_(log_mean).sub_(1), x)

    inverse = shifted.reciprocal_()
    square = torch.mul(inverse, inverse, out=spread)
    terms = (square * THIRD).add_(SECOND).mul_(square).add_(FIRST)
    score.addcmul_(inverse, terms)
    if by_theta:
        torch.mul(square, 5 * THIRD, out=terms).add_(3 * SECOND).mul_(square).add_(FIRST).mul_(inverse).add_(0.5)
        slope.addcmul_(inverse, terms, value=-1)
    pair = torch.add(y, 3, out=square).mul_(y)
    products = torch.add(pair, 2, out=terms).mul_(pair)
    if by_theta:
        slope.sub_(pair.add_(1).mul_(y.mul_(2).add_(3)).div_(products), alpha=2).add_(slope_at_zero)
    score.sub_(products.div_(product).log_())
    return score.sum(-1) - series.sum(), excess.mul_(theta), slope if by_theta else None


class _Score(Function):
    """The fused score; its gradient is ready when the value is."""

    @staticmethod
    def forward(ctx: Any, log_mean: Tensor, theta: Tensor, x: Tensor) -> Tensor:
        score, by_log_mean, by_theta = _fused(log_mean, theta, x, ctx.needs_input_grad[1])
        ctx.save_for_backward(log_mean, theta, x, by_log_mean, by_theta)
        return score

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        log_mean, theta, x, by_log_mean, by_theta = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of this gradient are wanted too
            inputs = [value for value, needed in zip((log_mean, theta), ctx.needs_input_grad, strict=False) if needed]
            score = _reference(log_mean.double(), theta.double(), x.double())
            found = iter(torch.autograd.grad(score, inputs, gradients[0].double(), create_graph=True))
            wanted = [next(found) if needed else None for needed in ctx.needs_input_grad[:2]]
            return wanted[0], wanted[1], None
        weight = gradients[0]
        log_mean_gradient = by_log_mean * weight.unsqueeze(-1) if ctx.needs_input_grad[0] else None
        if by_theta is None:
            return log_mean_gradient, None, None
        return log_mean_gradient, weight.reshape(-1) @ by_theta.reshape(-1, by_theta.shape[-1]), None


def negative_binomial_score(
    log_mean: Float[Tensor, "*batch gene"], inverse_dispersion: Float[Tensor, " gene"], x: Float[Tensor, "*batch gene"]
) -> Float[Tensor, "*batch"]:
    """Log probability of counts summed over genes, without -log x!.

    log Gamma(x + theta) - log Gamma(theta) + x log mean - (x + theta) log(mean + theta) + theta log theta.

    Parameters
    ----------
    log_mean
        Log of the expected counts.
    inverse_dispersion
        theta > 0; the variance is mean + mean^2 / theta.
    x
        Counts, in the dtype of the means; no gradient is taken with respect to them.
    """
    log_mean, x = torch.broadcast_tensors(log_mean, x)
    if log_mean.dtype != torch.float32:
        return _reference(log_mean, inverse_dispersion, x)
    if not torch.is_grad_enabled():
        return _fused(log_mean, inverse_dispersion, x, False)[0]
    return _Score.apply(log_mean, inverse_dispersion, x)
