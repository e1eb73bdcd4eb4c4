"""Posterior of the archetype logits of single cells, read from their covariates and expression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from ...models.parts.encoders import Encoder

if TYPE_CHECKING:
    from jaxtyping import Float


class CellLogits(PyroModule):
    """q(eta_i | theta, C_i, X_i) = Normal(f_theta(C_i) + m(C_i, X_i), s(C_i, X_i)^2), one network for all cells.

    m and s are the two heads of a network with one hidden layer; m starts at 0 and s at 0.3, so that a cell starts
    close to what its covariates say. The logits depend on theta through f_theta and are independent given it.

    Parameters
    ----------
    encoder
        The model's encoder f_theta, which has no fitted numbers of its own.
    num_genes
        p.
    num_archetypes
        K.
    num_hidden
        Units of the hidden layer.
    """

    def __init__(self, encoder: Encoder, num_genes: int, num_archetypes: int, num_hidden: int = 64) -> None:
        super().__init__()
        self.encoder = encoder
        self.sizes = {"num_genes": num_genes, "num_archetypes": num_archetypes, "num_hidden": num_hidden}
        self.hidden = nn.Linear(encoder.num_covariates + num_genes, num_hidden)
        self.heads = nn.Linear(num_hidden, 2 * num_archetypes)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)
        self.to(encoder.location)

    def forward(
        self,
        covariates: Float[Tensor, "cell covariate"],
        expression: Float[Tensor, "cell gene"],
        theta: Mapping[str, Tensor],
    ) -> tuple[Float[Tensor, "*draw cell archetype"], Float[Tensor, "cell archetype"]]:
        """Mean and standard deviation of the logits."""
        features = torch.cat([self.encoder.scaled(covariates), expression], -1)
        shift, scale = self.heads(torch.tanh(self.hidden(features))).chunk(2, -1)
        return self.encoder(covariates, dict(theta)) + shift, 0.3 * softplus(scale) / 0.6931471805599453 + 1e-4

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        return {"encoder": self.encoder.settings(), **self.sizes}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CellLogits:
        """A network of the described shapes, whose numbers the saved state then fills."""
        sizes = {key: value for key, value in settings.items() if key != "encoder"}
        return cls(Encoder.from_settings(settings["encoder"]), **sizes)
