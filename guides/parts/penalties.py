"""Penalties that are added to the loss of an Environment VAE.

The loss is the negative ELBO of the whole data set. A penalty is of the same order: a number a cell, times the number
of cells of the data, whatever the minibatch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...models.parts.errors import DataError
from ...models.parts.kinds import Part
from .adversary import Attention, average_entropy, discriminator, held_out_accuracy, mix, reverse_gradient
from .encoded_cells import EncodedCells

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from ...models.environment_vae import EnvironmentVAE


class Penalty(Part, ABC):
    """Base of the penalties.

    Parameters
    ----------
    weight
        Factor, at least 0, of the penalty. It is a buffer, so that a schedule can change it:
        ``"guide.penalties.0.weight"``.

    Raises
    ------
    DataError
        If the weight is negative or not finite.
    """

    family = "penalty"

    weight: Tensor

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"weight: found {weight!r}; wanted a number of at least 0")
        self.register_buffer("weight", torch.tensor(float(weight)))

    @abstractmethod
    def forward(self, model: EnvironmentVAE, cells: EncodedCells) -> Float[Tensor, ""]:
        """What is added to the loss."""

    def settings(self) -> dict[str, Any]:
        """JSON description; the numbers are in the saved state."""
        return super().settings() | {"weight": float(self.weight)}


class AdversarialEnvironments(Penalty):
    """Hide the environment from a discriminator that sees all latents but those that the environment attends to.

    The adversarial prior of Bertin, "Towards Learning Cell Causal-Embeddings" (2020). With shares alpha over latents of
    each environment and eps ~ Normal(0, I), the discriminator D guesses the environment from

        z' = sqrt(alpha) eps + sqrt(1 - alpha) z,

    and loss and penalty together are the game

        min over the model, encoder and alpha, max over D:
        -ELBO + weight N ( H(e) - E[-log D(e | z')] - entropy H(mean_e alpha_e) ),

    with the mean over all environments but the control.

    The first two terms in the bracket are a lower bound of the mutual information of e and z', tight for the best D.

    **Changed from the paper.** (1) Square roots: with alpha eps + (1 - alpha) z the variance of attended latents falls
    below 1, which D can read. (2) The entropy of the average attention is rewarded, up to what one latent for each
    environment can reach: else one latent that stores the name of every environment satisfies D, and training often
    ends with two environments that share a latent. (3) The KL to the prior stays, from the ELBO; a sparse prior such as
    `SingleEffects` on the shifts goes well with it. (4) Choose an encoder that does not see descriptors: one that does
    can write the environment into a latent without looking at x.

    **One optimiser.** D takes the gradient of its cross-entropy, without `weight`; encoder and attention take
    `-weight` times theirs, by a gradient reversal. As Adam is per parameter, this is a step of two optimisers.

    **Limits.** D is 1-Lipschitz (spectral norm), which keeps the game stable and makes it unsure of large shifts: the
    value underestimates the information. That D fails says little, see `leakage`. After a rotation of the
    latents D and attention have to learn anew; keep `weight` at 0 until then.

    Parameters
    ----------
    num_environments, num_latents
        Of the model; at least two latents.
    weight
        Nats of the ELBO for a nat of information.
    hidden
        Units of the layers of D.
    entropy
        Nats of information that a nat of the entropy of the average attention is worth. Keep it below 1, where
        spreading the attention would be worth more than hiding the environment.
    num_features
        With descriptors: alpha is a network of these many features, else a table.

    Raises
    ------
    DataError
        If a size or weight is out of range.
    """

    kind = "adversarial_environments"

    def __init__(
        self,
        num_environments: int,
        num_latents: int,
        weight: float = 1.0,
        *,
        hidden: Sequence[int] = (64, 64),
        entropy: float = 0.3,
        num_features: int = 0,
    ) -> None:
        super().__init__(weight)
        for name, size in {"num_environments": num_environments, "num_latents": num_latents}.items():
            if size < 2:
                raise DataError(f"{name}: found {size}; wanted at least 2")
        if not (math.isfinite(entropy) and entropy >= 0):
            raise DataError(f"entropy: found {entropy!r}; wanted a number of at least 0")
        self.num_environments, self.num_latents, self.num_features = num_environments, num_latents, num_features
        self.hidden, self.entropy = tuple(hidden), float(entropy)
        self.attention = Attention(num_environments, num_latents, num_features)
        self.discriminator = discriminator(num_latents, num_environments, self.hidden)

    def forward(self, model: EnvironmentVAE, cells: EncodedCells) -> Float[Tensor, ""]:
        """`weight` N (bound of the information - `entropy` H(mean alpha)).

        Raises
        ------
        DataError
            If the model has other sizes, or descriptors are needed and there are none.
        """
        sizes, wanted = (model.num_environments, model.num_latents), (self.num_environments, self.num_latents)
        if sizes != wanted:
            raise DataError(f"adversary: found sizes {wanted}; wanted {sizes}, environments and latents of the model")
        e_i, num_cells = cells.environment, cells.weight * len(cells.environment)
        log_alpha, log_rest = self.attention(e_i, cells.descriptors)
        mixed = mix(cells.z, torch.randn_like(cells.z), log_alpha, log_rest)
        surprise = cross_entropy(self.discriminator(reverse_gradient(mixed, self.weight)), e_i)
        share = torch.bincount(e_i, minlength=self.num_environments).to(surprise) / len(e_i)
        shifted = slice(None) if model.control is None else e_i != model.control
        spread, num_present = average_entropy(log_alpha[shifted], e_i[shifted])
        reward = self.entropy * spread.clamp(max=math.log(max(1, min(num_present, self.num_latents))))
        # The gradient of the surprise is that of D, and of what plays against D as it was reversed above.
        surprise = surprise - ((1 + self.weight) * surprise).detach()
        return num_cells * (surprise + self.weight * (torch.special.entr(share).sum() - reward))

    def counterfactual(
        self,
        z: Float[Tensor, "cell latent"],
        environment: Int[Tensor, " cell"],
        descriptors: Float[Tensor, "cell feature"] | None = None,
        *,
        noise: Float[Tensor, "cell latent"],
    ) -> Float[Tensor, "cell latent"]:
        """z': latents with the attended ones replaced by noise."""
        return mix(z, noise, *self.attention(environment, descriptors))

    @torch.no_grad()
    def leakage(
        self,
        z: Float[Tensor, "cell latent"],
        environment: Int[Tensor, " cell"],
        descriptors: Float[Tensor, "cell feature"] | None = None,
        *,
        seed: int = 0,
    ) -> dict[str, float]:
        """How often the environment is guessed from the latents of cells.

        Parameters
        ----------
        z
            Draws of the latents: locations alone would hide what the draws do not.
        environment, descriptors
            Of these cells.
        seed
            Of the noise, and of the cells that are held out.

        Returns
        -------
        dict
            Accuracies: ``"chance"`` of the most frequent environment; ``"adversary"`` of D on z'; ``"retrained"`` of a
            new classifier on z', held out, which finds what D was made to miss; ``"reference"`` of a new classifier on
            z itself, the most that there is to hide.

        Raises
        ------
        DataError
            If there are fewer than two environments with two cells.
        """
        generator = torch.Generator(z.device).manual_seed(seed)
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        mixed = self.counterfactual(z, environment, descriptors, noise=noise)
        mode = self.discriminator.training
        self.discriminator.eval()  # the power iteration of the spectral norm rests
        hits = self.discriminator(mixed).argmax(-1) == environment
        self.discriminator.train(mode)
        return {
            "chance": float(torch.bincount(environment).max() / len(environment)),
            "adversary": float(hits.double().mean()),
            "retrained": held_out_accuracy(mixed, environment, seed),
            "reference": held_out_accuracy(z, environment, seed),
        }

    def settings(self) -> dict[str, Any]:
        """JSON description; the numbers are in the saved state."""
        return {
            **super().settings(),
            "num_environments": self.num_environments,
            "num_latents": self.num_latents,
            "hidden": list(self.hidden),
            "entropy": self.entropy,
            "num_features": self.num_features,
        }


class InvariantRisk(Penalty):
    """Ask of the decoder to be calibrated in each environment by itself: IRMv1 of Arjovsky et al. (2019).

    With the risk R_e(w) = E_e[-log p(x | w output)] of the output of the decoder scaled by w, the penalty is

        weight N mean_e (dR_e/dw at w = 1)^2,

    for a Gaussian dR_e/dw = -E_e[<output, x - output>] / s^2. The mean is over the environments of the batch; the
    square is the product of the means over two random halves of the cells of the environment, which is unbiased, and
    can be negative. Environments with fewer than two cells in the batch are left out, so that batches want to be large
    enough for a few of them to have several.

    The gradient goes to what makes the output, not to the parameters of the likelihood: these are the scale that the
    risk is measured in, and a larger noise variance would lower every risk gradient.

    **Schedule.** 0 or 1 for the first third of the steps, then 1e2 to 1e4, as in
    ``{"guide.penalties.0.weight": lambda done: 1.0 if done < 1 / 3 else 1e3}``. The published recipe divides the loss
    by large weights; Adam does not see the scale of a loss, so that this is not needed.

    **Limits.** The penalty is zero for any exact reconstruction: it acts only where there are more genes than latents,
    and noise. It constrains one number for each environment, a calibration, and identifies no latents.

    Parameters
    ----------
    weight
        Factor of the penalty.
    """

    kind = "invariant_risk"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, model: EnvironmentVAE, cells: EncodedCells) -> Float[Tensor, ""]:
        """`weight` N times the mean over environments of the squared risk gradients."""
        num_cells, wanted = cells.weight * len(cells.environment), torch.is_grad_enabled()
        with torch.enable_grad():  # the value alone needs a gradient, that by w
            output = cells.output.detach().requires_grad_(wanted)
            slopes = risk_gradients(model, cells, output, create_graph=wanted)
            value = self.weight * num_cells * (slopes.prod(-1).sum() / max(1, len(slopes)))
            if not wanted or not len(slopes):
                return value.detach()
            (gradient,) = torch.autograd.grad(value, output)
        return value.detach() + (gradient * (cells.output - output.detach())).sum()


def risk_gradients(
    model: EnvironmentVAE, cells: EncodedCells, output: Float[Tensor, "cell gene"], *, create_graph: bool = False
) -> Float[Tensor, "environment half"]:
    """Risk gradients dR_e/dw of two random halves of the cells of each environment that has at least two."""
    half, count = random_halves(cells.environment)
    w = torch.ones_like(count, dtype=output.dtype).requires_grad_()
    score = model.likelihood.log_score(w.view(-1)[half].unsqueeze(-1) * output, cells.library, cells.expression)
    risk = -(score / count.view(-1)[half]).sum()
    (slopes,) = torch.autograd.grad(risk, w, create_graph=create_graph)
    return slopes[count.amin(-1) > 0]


def random_halves(
    environment: Int[Tensor, " cell"],
) -> tuple[Int[Tensor, " cell"], Int[Tensor, "environment half"]]:
    """Split the cells of each environment at random: the half of each cell, and the sizes of the halves.

    Halves are numbered 2 k and 2 k + 1 for the k-th of the environments that are present; the first of them has the odd
    cell.
    """
    _, present, count = environment.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(environment), device=environment.device)
    order = order[present[order].argsort(stable=True)]  # by environment, at random within
    first = count.cumsum(0) - count
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - first[present[order]]
    return 2 * present + rank % 2, torch.stack([(count + 1) // 2, count // 2], -1)


PENALTIES = Penalty.kinds
