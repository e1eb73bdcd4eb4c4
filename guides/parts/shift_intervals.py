"""Variances of sizes that know that the latent axes, their scales and the origin are estimates.

Under a linear decoder an error of W inside its row space is z -> z (I + g), and one of b there is a shift c of the
origin; errors outside leave the latents alone. With targets held, cells say of (g, c) and the sizes together

    N / 2 tr(F (g + g') F (g + g')) + sum_e n_e |d mean_e|_F^2,   d mean_e = mu_e g + c + d mu_e,

the Fisher information, plus 1 / tau^2 for every size. A rotation (g = -g') is seen by the means alone, a scale g_kk
mostly by the covariance: for it alone the variance of a size is delta^2 / (2 N F_kk^2). The marginal variance of a size
is its entry in the inverse. It also knows of the other effects of the same environment, which F couples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .single_effects import SingleEffectsPosterior

if TYPE_CHECKING:
    from jaxtyping import Float

CONSIDERED = 0.01  # probability of a target from which on its variance is worked out
ROTATION, ORIGIN = 1.0, 1e-3  # prior precisions of entries of g and c: no environment may move a latent, or see it


def marginal_variances(
    effects: SingleEffectsPosterior,
    count: Float[Tensor, " condition"],
    information: Float[Tensor, "latent latent_other"],
) -> Float[Tensor, "condition effect latent"]:
    """Variances of sizes given their targets; improbable targets keep the variance given the axes.

    Parameters
    ----------
    effects
        Targets and sizes; each effect's most probable target is held while others are looked at.
    count
        Cells of each environment.
    information
        F.
    """
    own = effects.size_variance.double()
    e, slot, k = (effects.probability[..., 1:] > CONSIDERED).nonzero().unbind(-1)
    if len(e) == 0:
        return own
    F, tau2 = information, effects.shift_variance.double()
    share = effects.probability[..., 1:].double() * effects.size_mean.double()
    mean = share.sum(1)
    chosen = effects.probability.argmax(-1)
    held = one_hot(chosen, effects.num_latents + 1)[..., 1:].to(F)  # (condition, effect, latent)
    axes = torch.linalg.cholesky(_information_of_axes(held, mean, count, F, tau2))
    entry = torch.arange(len(e), device=e.device)
    looked_at = held[e]
    looked_at[entry, slot] = torch.eye(effects.num_latents).to(F)[k]
    covariance = _covariance(looked_at, count[e], F, tau2)  # (entry, effect, effect)
    row = covariance[entry, slot]
    pull = count[e].unsqueeze(-1) * (row.unsqueeze(-2) @ looked_at @ F).squeeze(-2)  # d size / d mean_e
    at = mean[e] - share[e, slot]
    at[entry, k] += effects.size_mean.double()[e, slot, k]
    slope = (_with_one(at).unsqueeze(-1) * pull.unsqueeze(-2)).flatten(1)
    extra = torch.linalg.solve_triangular(axes, slope.mT, upper=False).square().sum(0)
    own = own.clone()
    own[e, slot, k] = row[entry, slot] + extra
    return own


def _covariance(
    held: Float[Tensor, "*b effect latent"], count: Float[Tensor, "*b"], F: Tensor, tau2: Tensor
) -> Float[Tensor, "*b effect effect_other"]:
    """Covariance of the sizes of an environment, axes known."""
    precision = count[..., None, None] * (held @ F @ held.mT)
    return torch.linalg.inv(precision + torch.eye(held.shape[-2]).to(F) / tau2)


def _information_of_axes(
    held: Float[Tensor, "condition effect latent"],
    mean: Float[Tensor, "condition latent"],
    count: Float[Tensor, " condition"],
    F: Float[Tensor, "latent latent_other"],
    tau2: Float[Tensor, ""],
) -> Float[Tensor, "axis axis_other"]:
    """Information about (g, c), row by row of g and then c, with the sizes integrated out."""
    d = len(F)
    pulled = held @ F
    n = count[:, None, None]
    left = n * F - n.square() * (pulled.mT @ _covariance(held, count, F, tau2) @ pulled)  # (condition, latent, latent)
    at = _with_one(mean)
    information = torch.einsum("ei,ej,ekl->ikjl", at, at, left)
    information[:d, :, :d] += count.sum() * (torch.einsum("ia,jb->ijab", F, F) + torch.einsum("ib,ja->ijab", F, F))
    prior = torch.cat([torch.full((d * d,), ROTATION), torch.full((d,), ORIGIN)]).to(F)
    return information.reshape((d + 1) * d, (d + 1) * d) + torch.diag(prior)


def _with_one(mean: Float[Tensor, "b latent"]) -> Float[Tensor, "b latent_and_one"]:
    return torch.cat([mean, torch.ones_like(mean[:, :1])], 1)
