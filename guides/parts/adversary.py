"""What an adversary on the latents is made of: attention over latents, a discriminator, and a check by other means.

The discriminator and what it works against have opposite objectives. A gradient reversal (Ganin and Lempitsky 2015)
lets one loss and one optimiser serve both: the gradient changes its sign where it leaves the discriminator. Adam treats
every parameter by itself, so that this is the same as two optimisers that take a step each.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.parametrizations import spectral_norm

from ...models.parts.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MOST_CELLS = 5000
"""Cells that the check by other means is trained on, at most."""


class _Reversal(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return -weight * gradients[0], None


def reverse_gradient(value: Float[Tensor, "*any"], weight: Float[Tensor, ""]) -> Float[Tensor, "*any"]:
    """Return `value` as it is; its gradient is multiplied with minus `weight`."""
    return _Reversal.apply(value, weight)


class Attention(nn.Module):
    """Shares alpha over latents, by environment: where the environment may leave its mark.

    Parameters
    ----------
    num_environments, num_latents
        Shape of the table.
    num_features
        With descriptors, whose network takes the place of the table; 0 for the table.
    hidden
        Units of that network.

    Notes
    -----
    It starts with equal shares.
    """

    def __init__(self, num_environments: int, num_latents: int, num_features: int = 0, hidden: int = 32) -> None:
        super().__init__()
        self.num_features = num_features
        self.table = None if num_features else nn.Parameter(torch.zeros(num_environments, num_latents))
        self.network = None
        if num_features:
            last = nn.Linear(hidden, num_latents, bias=False)
            nn.init.zeros_(last.weight)
            self.network = nn.Sequential(nn.Linear(num_features, hidden), nn.Tanh(), last)

    def forward(
        self, environment: Int[Tensor, " cell"], descriptors: Float[Tensor, "cell feature"] | None = None
    ) -> tuple[Float[Tensor, "cell latent"], Float[Tensor, "cell latent"]]:
        """Log alpha and log(1 - alpha) of cells.

        Raises
        ------
        DataError
            If descriptors are needed and there are none.
        """
        if self.table is not None:
            return log_shares(self.table[environment])
        if self.network is None or descriptors is None:
            raise DataError(
                f"descriptors: found none; wanted {self.num_features} features for the attention of the adversary, and "
                "a model that is given them"
            )
        return log_shares(self.network(descriptors))


def log_shares(logits: Float[Tensor, "*b latent"]) -> tuple[Float[Tensor, "*b latent"], Float[Tensor, "*b latent"]]:
    """Log alpha and log(1 - alpha) of alpha = softmax(logits), with finite gradients where alpha rounds to 0 or 1."""
    total = logits.logsumexp(-1, keepdim=True)
    log_alpha = logits - total
    top = logits.argmax(-1, keepdim=True)  # all others are at most 1/2
    others = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True) - total
    rest = (-log_alpha.scatter(-1, top, -1.0).exp()).log1p()
    return log_alpha, rest.scatter(-1, top, others)


def mix(
    z: Float[Tensor, "cell latent"],
    noise: Float[Tensor, "cell latent"],
    log_alpha: Float[Tensor, "cell latent"],
    log_rest: Float[Tensor, "cell latent"],
) -> Float[Tensor, "cell latent"]:
    """sqrt(alpha) noise + sqrt(1 - alpha) z: of variance 1 if both are."""
    return (0.5 * log_alpha).exp() * noise + (0.5 * log_rest).exp() * z


def average_entropy(
    log_alpha: Float[Tensor, "cell latent"], environment: Int[Tensor, " cell"]
) -> tuple[Float[Tensor, ""], int]:
    """Entropy of the average attention of the environments that these cells are from, in nats; and their number.

    Zero without cells.
    """
    if not len(environment):
        return log_alpha.sum(), 0
    _, inverse, count = environment.unique(return_inverse=True, return_counts=True)
    log_count = count[inverse].to(log_alpha).log().unsqueeze(-1)
    log_mean = (log_alpha - log_count).logsumexp(0) - math.log(len(count))
    return -(log_mean.exp() * log_mean).sum(), len(count)


def discriminator(num_latents: int, num_environments: int, hidden: Sequence[int]) -> nn.Sequential:
    """Logits of environments given latents: a network whose layers have spectral norm 1, so that it is 1-Lipschitz."""
    layers: list[nn.Module] = []
    sizes = [num_latents, *hidden]
    for here, there in zip(sizes, [*hidden, num_environments], strict=True):
        layers += [spectral_norm(nn.Linear(here, there)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def held_out_accuracy(z: Float[Tensor, "cell latent"], environment: Int[Tensor, " cell"], seed: int = 0) -> float:
    """Share of held-out cells whose environment a classifier names rightly.

    Logistic regression on the latents, their squares and products, which is exact for Gaussian classes; trained on half
    of the cells, 5000 at most, and scored on as many.

    Parameters
    ----------
    z, environment
        Latents and environments of cells; environments with a single cell are left out.
    seed
        Of the halves.

    Raises
    ------
    DataError
        If there are fewer than two environments with two cells.
    """
    features, labels = z.detach().cpu().double().numpy(), environment.cpu().numpy()
    names, inverse, count = np.unique(labels, return_inverse=True, return_counts=True)
    if (count > 1).sum() < 2:
        raise DataError(f"environment: found {len(names)}, {(count > 1).sum()} of two cells; wanted at least two")
    usable = (count > 1)[inverse]
    features, labels = features[usable], labels[usable]
    half = max(min(len(labels) // 2, MOST_CELLS), int((count > 1).sum()))
    train, test, train_labels, test_labels = train_test_split(
        features, labels, train_size=half, test_size=half, stratify=labels, random_state=seed
    )
    classifier = make_pipeline(
        StandardScaler(), PolynomialFeatures(2, include_bias=False), StandardScaler(), LogisticRegression(max_iter=500)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is near enough for an accuracy
        return float(classifier.fit(train, train_labels).score(test, test_labels))
