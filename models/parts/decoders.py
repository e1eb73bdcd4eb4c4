"""Decoders: from the latent causes of a cell to the numbers that a likelihood reads, one a gene."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from .errors import DataError
from .kinds import Part

if TYPE_CHECKING:
    from jaxtyping import Float


class Decoder(Part, ABC):
    """Base of the decoders.

    Parameters
    ----------
    num_latents, num_genes
        Sizes of input and output.
    num_features
        Length of the environments' descriptors for a conditional decoder, which reads them beside the latents; 0 for
        one that sees the latents only. A conditional decoder puts no constraint on what an environment does.

    Raises
    ------
    DataError
        If a size is too small.
    """

    family = "decoder"

    def __init__(self, num_latents: int, num_genes: int, num_features: int = 0) -> None:
        super().__init__()
        if num_latents < 1 or num_genes < 1 or num_features < 0:
            found = f"{num_latents}, {num_genes}, {num_features}"
            raise DataError(f"num_latents, num_genes, num_features: found {found}; wanted at least 1, 1 and 0")
        self.num_latents, self.num_genes, self.num_features = num_latents, num_genes, num_features

    @property
    def uses_descriptors(self) -> bool:
        """Whether `forward` needs descriptors."""
        return self.num_features > 0

    @abstractmethod
    def forward(
        self, c: Float[Tensor, "*batch latent"], u: Float[Tensor, "*batch feature"] | None = None
    ) -> Float[Tensor, "*batch gene"]:
        """Decode latents.

        Parameters
        ----------
        c
            Latent causes.
        u
            Descriptors; looked at by conditional decoders only.

        Raises
        ------
        DataError
            If the decoder is conditional and there are no descriptors.
        """

    @property
    @abstractmethod
    def offset(self) -> Float[Tensor, " gene"]:
        """Parameter that is added to the output last."""

    @abstractmethod
    def rotate(self, rotation: Float[Tensor, "latent latent"]) -> None:
        """Absorb a change of the latents c -> c R: afterwards ``decoder(c R)`` is what ``decoder(c)`` was.

        In place, and exact but for rounding, since only the first layer's weights change. R has the dtype of `offset`.

        Raises
        ------
        DataError
            If R is not an orthogonal matrix of the right size.
        """

    @abstractmethod
    def translate(self, origin: Float[Tensor, " latent"]) -> None:
        """Absorb a change of the latents c -> c - origin: ``decoder(c - origin)`` is then what ``decoder(c)`` was."""

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        sizes = ("num_latents", "num_genes", "num_features")
        return super().settings() | {name: getattr(self, name) for name in sizes}


class LinearDecoder(Decoder):
    """o = c W + b, with u V added if conditional.

    Attributes
    ----------
    weight
        W, (latent, gene).
    bias
        b, (gene,).
    feature_weight
        V, (feature, gene), of a conditional decoder.
    """

    kind = "linear"

    def __init__(self, num_latents: int, num_genes: int, num_features: int = 0) -> None:
        super().__init__(num_latents, num_genes, num_features)
        bound = 1 / math.sqrt(num_latents + num_features)  # as `nn.Linear` starts
        self.weight = nn.Parameter(torch.empty(num_latents, num_genes).uniform_(-bound, bound))
        if num_features:
            self.feature_weight = nn.Parameter(torch.empty(num_features, num_genes).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_genes).uniform_(-bound, bound))

    @property
    def offset(self) -> Float[Tensor, " gene"]:
        """Output where all latents are zero."""
        return self.bias

    @property
    def mixing(self) -> Float[Tensor, "gene latent"]:
        """What a unit of each latent does to each gene."""
        return self.weight.mT

    def forward(
        self, c: Float[Tensor, "*batch latent"], u: Float[Tensor, "*batch feature"] | None = None
    ) -> Float[Tensor, "*batch gene"]:
        """Decode latents."""
        output = linear(c, self.weight.mT, self.bias)
        return output + _needed(u) @ self.feature_weight if self.num_features else output

    def rotate(self, rotation: Float[Tensor, "latent latent"]) -> None:
        """W <- R' W."""
        check_rotation(rotation, self.num_latents)
        with torch.no_grad():
            self.weight.copy_(rotation.to(self.weight.device).double().mT @ self.weight.double())

    def translate(self, origin: Float[Tensor, " latent"]) -> None:
        """B <- b + origin W."""
        with torch.no_grad():
            self.bias.add_(origin.to(self.weight) @ self.weight)


class MLPDecoder(Decoder):
    """Network of ReLU layers.

    Parameters
    ----------
    num_latents, num_genes, num_features
        As for `Decoder`.
    hidden
        Widths of the hidden layers, at least one.

    Raises
    ------
    DataError
        If there is no hidden layer or a size is too small.
    """

    kind = "mlp"

    def __init__(
        self, num_latents: int, num_genes: int, hidden: Sequence[int] = (128, 128), num_features: int = 0
    ) -> None:
        super().__init__(num_latents, num_genes, num_features)
        self.hidden = tuple(hidden)
        if not self.hidden or min(self.hidden) < 1:
            raise DataError(f"hidden: found {self.hidden}; wanted one or more widths of at least 1")
        self.first = nn.Linear(num_latents + num_features, self.hidden[0])
        self.between = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(self.hidden))
        self.last = nn.Linear(self.hidden[-1], num_genes)

    def forward(
        self, c: Float[Tensor, "*batch latent"], u: Float[Tensor, "*batch feature"] | None = None
    ) -> Float[Tensor, "*batch gene"]:
        """Decode latents."""
        weight, bias = self.first.weight, self.first.bias
        if self.num_features:  # the first layer of [c, u], without repeating u for every draw of c
            parts = weight.split([self.num_latents, self.num_features], 1)
            h = linear(c, parts[0], bias) + linear(_needed(u), parts[1])
        else:
            h = linear(c, weight, bias)
        for layer in self.between:
            h = layer(relu(h))
        return self.last(relu(h))

    @property
    def offset(self) -> Float[Tensor, " gene"]:
        """Offset of the last layer."""
        return self.last.bias

    def rotate(self, rotation: Float[Tensor, "latent latent"]) -> None:
        """First layer's weights of the latents, (unit, latent): W <- W R."""
        check_rotation(rotation, self.num_latents)
        with torch.no_grad():
            weight = self.first.weight[:, : self.num_latents]
            weight.copy_(weight.double() @ rotation.to(weight.device).double())

    def translate(self, origin: Float[Tensor, " latent"]) -> None:
        """First layer's offset: b <- b + W origin."""
        with torch.no_grad():
            weight = self.first.weight[:, : self.num_latents]
            self.first.bias.add_(weight @ origin.to(weight))

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        return super().settings() | {"hidden": list(self.hidden)}


def _needed(u: Tensor | None) -> Tensor:
    if u is None:
        raise DataError("u: found None; wanted descriptors of the environments, which a conditional decoder reads")
    return u


def check_rotation(rotation: Float[Tensor, "latent latent"], num_latents: int) -> None:
    """Refuse what is not an orthogonal matrix of the right size.

    Raises
    ------
    DataError
        Naming the rotation.
    """
    shape = tuple(rotation.shape)
    if shape != (num_latents, num_latents):
        raise DataError(f"rotation: found a matrix of shape {shape}; wanted ({num_latents}, {num_latents})")
    rotation = rotation.detach().double()
    defect = float((rotation.mT @ rotation - torch.eye(num_latents, device=rotation.device)).abs().max())
    if not defect < 1e-4:
        raise DataError(f"rotation: found R'R off the identity by {defect:.1g}; wanted an orthogonal matrix")


DECODERS = Decoder.kinds
