"""Some cells with their encoding: what penalties on the latents of an encoder work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass
class EncodedCells:
    """Some cells with their encoding, as penalties see them.

    Attributes
    ----------
    expression, environment, library, descriptors
        Of these cells; the last two None where the model has none.
    loc, log_variance, z
        Moments of q(z), and a draw.
    output
        Of the decoder at the draw.
    weight
        Cells of the data for each of these cells: what a sum over them is to be multiplied with.
    """

    expression: Float[Tensor, "cell gene"]
    environment: Int[Tensor, " cell"]
    library: Float[Tensor, " cell"] | None
    descriptors: Float[Tensor, "cell feature"] | None
    loc: Float[Tensor, "cell latent"]
    log_variance: Float[Tensor, "cell latent"]
    z: Float[Tensor, "cell latent"]
    output: Float[Tensor, "cell gene"]
    weight: float
