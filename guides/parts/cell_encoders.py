"""Amortised posteriors: from the expression of a cell to location and log variance of its latents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from embergraph.models.parts.decoders import check_rotation
from embergraph.models.parts.errors import DataError, LoadError

if TYPE_CHECKING:
    from jaxtyping import Float

LOG_VARIANCE_BOUNDS = (-8.0, 4.0)  # unbounded heads overflow on expression unlike that of the training cells
ROWS = 8192  # cells at a time where all of them are looked at, so that memory does not grow with their number

Transform = Literal["identity", "log1p", "log1p_library"]
Sees = Literal["x", "x_u", "film"]


class CellEncoder(nn.Module):
    """Network of ReLU layers on standardised expression.

    Parameters
    ----------
    num_genes, num_latents
        Sizes of input and output.
    hidden
        Widths of the hidden layers; none of them makes the encoder linear in the standardised expression.
    transform
        What happens to expression first: nothing, log(1 + x), or log(1 + s x / library) with s = `target_sum`.
    sees
        ``"x"``: expression only. ``"x_u"``: expression and descriptors side by side. ``"film"``: descriptors scale
        and shift every unit of every hidden layer before its ReLU, h <- (1 + D_l u) h + B_l u (Perez et al., 2018);
        D and B start at zero, and so the encoder as one that sees expression only.
    num_features
        Length of the descriptors; of no use where the encoder sees expression only.
    target_sum
        Counts that a cell is scaled to by ``"log1p_library"``.

    Attributes
    ----------
    center, scale
        (gene,): location and spread of the transformed training data, set by `fit_transform_`; 0 and 1 before.

    Raises
    ------
    DataError
        If an option is unknown, a size too small, or ``"film"`` has no hidden layer to act on.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        num_genes: int,
        num_latents: int,
        hidden: Sequence[int] = (128, 128),
        transform: Transform = "identity",
        sees: Sees = "x",
        num_features: int = 0,
        target_sum: float = 400.0,
    ) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        if min(num_genes, num_latents, *self.hidden) < 1:
            found = f"{num_genes}, {num_latents}, {self.hidden}"
            raise DataError(f"num_genes, num_latents, hidden: found {found}; wanted at least 1 each")
        for name, value, known in (("transform", transform, Transform), ("sees", sees, Sees)):
            if value not in get_args(known):
                raise DataError(f"{name}: found {value!r}; wanted one of {get_args(known)}")
        if sees != "x" and num_features < 1:
            raise DataError(f"num_features: found {num_features}; wanted at least 1 for an encoder that sees {sees!r}")
        if sees == "film" and not self.hidden:
            raise DataError("hidden: found no layer; wanted one or more, which 'film' acts on")
        if not target_sum > 0:
            raise DataError(f"target_sum: found {target_sum}; wanted a positive number")
        self.num_genes, self.num_latents, self.target_sum = num_genes, num_latents, target_sum
        self.transform, self.sees, self.num_features = transform, sees, num_features
        self.register_buffer("center", torch.zeros(num_genes))
        self.register_buffer("scale", torch.ones(num_genes))
        widths = (num_genes + (num_features if sees == "x_u" else 0), *self.hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.head = nn.Linear(widths[-1], 2 * num_latents)  # locations, then log variances
        self.film = nn.ModuleList(
            nn.Linear(num_features, 2 * width, bias=False) for width in (self.hidden if sees == "film" else ())
        )
        for weight in self.film.parameters():
            nn.init.zeros_(weight)

    @property
    def uses_descriptors(self) -> bool:
        """Whether `forward` needs descriptors."""
        return self.sees != "x"

    @property
    def uses_library(self) -> bool:
        """Whether `forward` needs the library size."""
        return self.transform == "log1p_library"

    def transformed(
        self, x: Float[Tensor, "*batch gene"], library: Float[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch gene"]:
        """Expression after the transform, before it is standardised.

        Raises
        ------
        DataError
            If the transform needs a library and there is none.
        """
        if self.transform == "identity":
            return x
        if self.transform == "log1p":
            return x.log1p()
        if library is None:
            raise DataError("library: found None; wanted the total counts of each cell for 'log1p_library'")
        library = library.to(x.dtype).clamp(min=1e-20)  # where it is zero, so is x
        return (x * (self.target_sum / library).unsqueeze(-1)).log1p()

    def forward(
        self,
        x: Float[Tensor, "*batch gene"],
        library: Float[Tensor, "*batch"] | None = None,
        u: Float[Tensor, "*batch feature"] | None = None,
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch latent"]]:
        """Location and log variance of the latents; log variances are clamped to [-8, 4].

        Raises
        ------
        DataError
            If descriptors or library are needed and missing.
        """
        if u is None and self.uses_descriptors:
            raise DataError(f"u: found None; wanted descriptors for an encoder that sees {self.sees!r}")
        precision = self.scale.reciprocal()
        h = torch.addcmul(-self.center * precision, self.transformed(x.to(self.scale.dtype), library), precision)
        if u is not None and self.sees == "x_u":
            h = torch.cat([h, u.to(h.dtype).expand(*h.shape[:-1], -1)], -1)
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if u is not None and self.sees == "film":
                gain, shift = self.film[i](u.to(h.dtype)).chunk(2, -1)
                h = torch.addcmul(h + shift, gain, h)
            h = relu(h)
        location, log_variance = self.head(h).chunk(2, -1)
        return location, log_variance.clamp(*LOG_VARIANCE_BOUNDS)

    def rotate(self, rotation: Float[Tensor, "latent latent"]) -> None:
        """Absorb a change of the latents z -> z R in the head.

        The location becomes location R exactly. Log variances, before they are clamped, are averaged with the weights
        R^2, since a diagonal covariance does not stay diagonal.

        Raises
        ------
        DataError
            If R is not an orthogonal matrix of the right size.
        """
        check_rotation(rotation, self.num_latents)
        with torch.no_grad():
            turn = rotation.to(self.head.weight.device).double().mT
            for part, mixing in enumerate((turn, turn.square())):
                rows = slice(part * self.num_latents, (part + 1) * self.num_latents)
                for values in (self.head.weight, self.head.bias):
                    values[rows].copy_(mixing @ values[rows].double())

    def translate(self, origin: Float[Tensor, " latent"]) -> None:
        """Absorb a change of the latents z -> z - origin in the head."""
        with torch.no_grad():
            self.head.bias[: self.num_latents].sub_(origin.to(self.head.bias))

    def fit_transform_(
        self, x: Float[Tensor, "cell gene"], library: Float[Tensor, " cell"] | None = None
    ) -> CellEncoder:
        """Set `center` and `scale` to mean and standard deviation of the transformed training cells.

        A constant gene gets scale 1, so that it enters as zero.

        Raises
        ------
        DataError
            If there are no cells, or transformed expression is not finite.
        """
        if x.dim() != 2 or x.shape[0] < 1 or x.shape[1] != self.num_genes:
            raise DataError(f"x: found shape {tuple(x.shape)}; wanted (cell, {self.num_genes}), at least one cell")
        starts = range(0, x.shape[0], ROWS)

        def rows(start: int) -> Tensor:
            part = None if library is None else library[start : start + ROWS].double()
            return self.transformed(x[start : start + ROWS].detach().double(), part)

        center = torch.stack([rows(start).sum(0) for start in starts]).sum(0) / x.shape[0]
        if not bool(torch.isfinite(center).all()):
            raise DataError(f"x: found values that {self.transform!r} makes infinite or NaN; wanted finite ones")
        first, squares, varies = rows(0)[0], torch.zeros_like(center), torch.zeros_like(center, dtype=torch.bool)
        for start in starts:
            part = rows(start)
            squares += (part - center).square().sum(0)
            varies |= (part != first).any(0)  # the squares of a constant need not be zero in floating point
        self.center.copy_(center)
        self.scale.copy_(torch.where(varies, (squares / x.shape[0]).sqrt(), torch.ones_like(squares)))
        return self

    def settings(self) -> dict[str, Any]:
        """JSON description that `from_settings` rebuilds the shapes from."""
        names = ("num_genes", "num_latents", "transform", "sees", "num_features", "target_sum")
        return {"kind": "cell_encoder", "hidden": list(self.hidden)} | {name: getattr(self, name) for name in names}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> CellEncoder:
        """Make an encoder of the described sizes, which the saved state then fills.

        Raises
        ------
        LoadError
            If the kind is unknown.
        """
        arguments = dict(settings)
        kind = arguments.pop("kind", None)
        if kind != "cell_encoder":
            raise LoadError(f"encoder: found {kind!r}; wanted 'cell_encoder'")
        return cls(**arguments)
