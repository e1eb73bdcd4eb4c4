"""The score of `guides.orders` as a function of the archetype weights Z, with its gradient in closed form.

Given an order, the edges, intercepts and noise of all genes integrate out, and what remains to be found are the few
weights of the encoder: a smooth problem in which starts agree, unlike the joint one over edges and encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .orders import EDGE_VARIANCE, INTERCEPT_VARIANCE, Noise

if TYPE_CHECKING:
    from jaxtyping import Float


def log_evidence(
    mixture: Float[Tensor, "*draw cell archetype"], expression: Float[Tensor, "cell gene"], noise: Noise
) -> Float[Tensor, "*draw"]:
    """Log score of the order in which the genes come, up to a constant; `OrderScore` as a function of the mixture.

    Parameters
    ----------
    mixture
        Z.
    expression
        X, genes in their order.
    noise
        As for `OrderScore`.
    """
    flat = mixture.reshape(-1, *mixture.shape[-2:])
    return torch.stack([_Evidence.apply(Z, expression, noise)[0] for Z in flat]).reshape(mixture.shape[:-2])


def mean_edges(
    mixture: Float[Tensor, "cell archetype"], expression: Float[Tensor, "cell gene"], noise: Noise
) -> tuple[Float[Tensor, "archetype regulator target"], Float[Tensor, "archetype gene"], Float[Tensor, " gene"]]:
    """Posterior means of archetypes and intercepts, and the noise scales that go with them, genes in their order."""
    _, coefficients, rss = _Evidence.apply(mixture.detach(), expression, noise)
    n, K, p = len(mixture), mixture.shape[-1], expression.shape[-1]
    blocks = coefficients.reshape(p, K, p).transpose(0, 1)
    archetypes = torch.cat([blocks[:, 1:], torch.zeros_like(blocks[:, :1])], 1)
    variance = rss.mean().expand(p) / n if noise == "equal" else rss / n
    return archetypes, blocks[:, 0], variance.sqrt()


class _Evidence(torch.autograd.Function):
    """Value, coefficients (block x archetype, gene) and residual sums of squares of one mixture."""

    @staticmethod
    def forward(ctx: Any, mixture: Tensor, expression: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        X, Z = expression.double(), mixture.detach().double()
        (n, p), K = X.shape, Z.shape[1]
        regressors = torch.cat([torch.ones_like(X[:, :1]), X[:, :-1]], 1)  # the last gene regulates none
        features = (regressors.unsqueeze(-1) * Z.unsqueeze(1)).reshape(n, p * K)
        variance = X.new_full((p * K,), EDGE_VARIANCE)
        variance[:K] = INTERCEPT_VARIANCE
        factor = torch.linalg.cholesky(features.T @ features + (1 / variance).diag())
        root = torch.linalg.solve_triangular(factor, torch.eye(p * K, dtype=X.dtype, device=X.device), upper=False)
        block = torch.arange(p * K, device=X.device) // K
        columns = (root @ (features.T @ X)) * (block.unsqueeze(1) <= torch.arange(p, device=X.device))
        rss = (X.square().sum(0) - columns.square().sum(0)).clamp(min=0)
        times = (p - block).double()  # of how many genes' prefixes a row is part
        log_dets = ((factor.diagonal().log() + 0.5 * variance.log()) * times).sum()
        if noise == "equal":
            count = 2 + 0.5 * n * p
            value, pull = -count * torch.log1p(0.5 * rss.sum()), (count / (2 + rss.sum())).expand(p)
        else:
            count = 2 + 0.5 * n
            value, pull = -count * torch.log1p(0.5 * rss).sum(), count / (2 + rss)
        coefficients = root.T @ columns
        residual = X - features @ coefficients
        # d rss_b = -2 r_b w_b' dF and d log det = tr(A^-1 F' dF), A^-1 summed over the genes' prefixes
        gradient = 2 * (residual * pull) @ coefficients.T - features @ (root.T @ (times.unsqueeze(1) * root))
        ctx.save_for_backward((gradient.reshape(n, p, K) * regressors.unsqueeze(-1)).sum(1).to(mixture.dtype))
        return (value - log_dets).to(mixture.dtype), coefficients, rss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[0] * gradient, None, None
