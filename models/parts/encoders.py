"""Encoders: from covariates of a cell to the logits of its archetype weights, with priors on every weight.

| symbol | name | shape |
|---|---|---|
| Phi | features of the covariates | (cell, feature) |
| la | ``encoder_log_amplitude`` | () |
| B | ``encoder_weights`` | (feature, archetype) |
| b0 | ``encoder_bias`` | (archetype,) |

eta = Phi B + b0, with la ~ Normal(0, 0.5), B ~ 1.5 exp(la) Normal(0, 1) and b0 ~ Normal(0, 1) unless given otherwise.
The data speak of the size of B, not of B / exp(la): in these coordinates samplers mix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .errors import LoadError
from .priors import Prior, PriorLike
from .sem import without_cell_axis

if TYPE_CHECKING:
    from jaxtyping import Float

AMPLITUDE = 1.5
Weights = dict[str, Tensor]


class Encoder(nn.Module, ABC):
    """Base of the encoders: scaled covariates, a feature map, and a Bayesian linear last layer.

    Parameters
    ----------
    covariates
        Training covariates; only their location, spread and range are kept. A constant column becomes a zero feature.
    weight_prior, bias_prior, amplitude_prior
        Priors of B, b0 and la.
    """

    name: ClassVar[str]
    hidden: ClassVar[tuple[str, ...]] = ()

    location: Tensor
    spread: Tensor
    lowest: Tensor
    highest: Tensor
    two_valued: Tensor
    feature_location: Tensor

    def __init__(
        self,
        covariates: Float[Tensor, "cell covariate"],
        *,
        weight_prior: PriorLike | None = None,
        bias_prior: PriorLike | None = None,
        amplitude_prior: PriorLike | None = None,
    ) -> None:
        super().__init__()
        covariates = covariates.detach().double()
        spread = 2 * covariates.std(0, correction=0)
        self.num_covariates = covariates.shape[1]
        self.register_buffer("location", covariates.mean(0))
        self.register_buffer("lowest", covariates.amin(0))
        self.register_buffer("highest", covariates.amax(0))
        ends = (covariates == self.lowest) | (covariates == self.highest)
        self.register_buffer("two_valued", ends.all(0))
        constant = self.highest == self.lowest  # whose spread need not be zero in floating point
        self.register_buffer("spread", torch.where(constant, torch.full_like(spread, math.inf), spread))
        self.weight_prior = Prior(weight_prior or dist.Normal(0.0, 1.0))
        self.bias_prior = Prior(bias_prior or dist.Normal(0.0, 1.0))
        self.amplitude_prior = Prior(amplitude_prior or dist.Normal(0.0, 0.5))
        self.prepare(self.scaled(covariates))
        self.double()  # priors too, whose numbers come in torch's default precision

    @abstractmethod
    def prepare(self, u: Float[Tensor, "cell covariate"]) -> None:
        """Register what the feature map needs to know of the scaled training covariates."""

    @abstractmethod
    def features(
        self, covariates: Float[Tensor, "*cell covariate"], weights: Weights
    ) -> Float[Tensor, "*cell feature"]:
        """Phi: the features that the last layer combines."""

    @property
    @abstractmethod
    def feature_names(self) -> list[tuple[int, str]]:
        """Covariate index (-1: all of them) and label of every feature."""

    def hidden_weights(self) -> Weights:
        """Sample sites below the last layer; none unless the encoder is a network."""
        return {}

    def scaled(self, covariates: Float[Tensor, "*cell covariate"]) -> Float[Tensor, "*cell covariate"]:
        """U = (C - mean) / (2 sd), zero for constant columns."""
        return (covariates - self.location) / self.spread

    def weights(self, num_archetypes: int) -> Weights:
        """Draw all weights: the encoder's part of the generative process."""
        drawn = self.hidden_weights()
        shape = (len(self.feature_names), num_archetypes)
        log_amplitude = pyro.sample("encoder_log_amplitude", self.amplitude_prior.expand(()))
        amplitude = (AMPLITUDE * log_amplitude.exp())[..., None, None].expand(*log_amplitude.shape, *shape)
        # Of full shape: AffineTransform sums log|scale| over the entries that it is given, not over those it scales.
        scaling = dist.transforms.AffineTransform(0.0, amplitude, event_dim=2)
        prior = dist.TransformedDistribution(self.weight_prior.expand(shape), [scaling])
        drawn["encoder_weights"] = pyro.sample("encoder_weights", prior)
        drawn["encoder_bias"] = pyro.sample("encoder_bias", self.bias_prior.expand((num_archetypes,)))
        return drawn

    def forward(
        self, covariates: Float[Tensor, "cell covariate"], weights: Weights
    ) -> Float[Tensor, "*draw cell archetype"]:
        """Logits eta of the archetype weights."""
        features = self.features(covariates, weights)
        return features @ without_cell_axis(weights["encoder_weights"], 2) + weights["encoder_bias"]

    def settings(self) -> dict[str, Any] | None:
        """JSON description for saving, None when a prior has no name that a file may carry."""
        priors = {key: getattr(self, key).settings() for key in ("weight_prior", "bias_prior", "amplitude_prior")}
        if None in priors.values():
            return None
        shapes = {key: list(value.shape) for key, value in self.state_dict().items()}
        return {"encoder": self.name, "num_covariates": self.num_covariates, "priors": priors, "shapes": shapes}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Encoder:
        """Make an encoder of the described kind and sizes, whose buffers the saved state then fills.

        Raises
        ------
        LoadError
            If the kind is unknown.
        """
        if settings["encoder"] not in ENCODERS:
            raise LoadError(f"encoder: found {settings['encoder']!r}; wanted one of {sorted(ENCODERS)}")
        encoder = ENCODERS[settings["encoder"]](torch.zeros(2, settings["num_covariates"]))
        for key, prior in settings["priors"].items():
            setattr(encoder, key, Prior.from_settings(prior))
        for key, shape in settings["shapes"].items():
            owner, _, leaf = key.rpartition(".")
            module = encoder.get_submodule(owner)
            module.register_buffer(leaf, torch.zeros(shape, dtype=getattr(module, leaf).dtype))
        return encoder.double()


class LinearEncoder(Encoder):
    """Phi = u: logits linear in the covariates."""

    name = "linear"

    def prepare(self, u: Float[Tensor, "cell covariate"]) -> None:
        """Nothing beyond the scaling."""

    @property
    def feature_names(self) -> list[tuple[int, str]]:
        """One feature a covariate."""
        return [(j, "linear") for j in range(self.num_covariates)]

    def features(
        self, covariates: Float[Tensor, "*cell covariate"], weights: Weights
    ) -> Float[Tensor, "*cell feature"]:
        """Return u."""
        return self.scaled(covariates)


class GPEncoder(Encoder):
    """Sum over covariates of a linear term and a smooth function from a Gaussian-process prior (RBF kernel).

    The process is written in the Hilbert-space basis of Solin and Sarkka (2020): eight sines a covariate with
    length-scale 0.5 in units of u, so the encoder is linear in its weights and all of it has a posterior. Columns with
    two values (indicators) have the linear feature only. Interactions between covariates are not representable;
    `GPJointEncoder` adds them.
    """

    name = "gp"
    num_basis: ClassVar[int] = 8
    length_scale: ClassVar[float] = 0.5

    frequency: Tensor
    boundary: Tensor
    column: Tensor
    basis_scale: Tensor

    def prepare(self, u: Float[Tensor, "cell covariate"]) -> None:
        """Boundary L of the basis and its scale sqrt(S(lambda)/L), per covariate with more than two values."""
        smooth = [j for j in range(u.shape[1]) if len(u[:, j].unique()) > 2]
        column = torch.tensor(smooth, dtype=torch.long).repeat_interleave(self.num_basis)
        boundary = (1.15 * u.abs().amax(0)).clamp(min=1.6)[column]
        frequency = torch.arange(1, self.num_basis + 1, dtype=u.dtype).repeat(len(smooth)) * math.pi / (2 * boundary)
        spectral = math.sqrt(2 * math.pi) * self.length_scale * (-0.5 * (self.length_scale * frequency) ** 2).exp()
        self.register_buffer("column", column)
        self.register_buffer("boundary", boundary)
        self.register_buffer("frequency", frequency)
        self.register_buffer("basis_scale", (spectral / boundary).sqrt())
        self.register_buffer("feature_location", torch.zeros(()))
        self.register_buffer("feature_location", self.raw_features(u).mean(0))

    @property
    def feature_names(self) -> list[tuple[int, str]]:
        """Linear features first, then the sines of every smooth covariate."""
        sines = [(int(j), f"sine {1 + i % self.num_basis}") for i, j in enumerate(self.column.tolist())]
        return [(j, "linear") for j in range(self.num_covariates)] + sines

    def raw_features(self, u: Float[Tensor, "*cell covariate"]) -> Float[Tensor, "*cell feature"]:
        """Features before the training means are taken off."""
        sines = torch.sin(self.frequency * (u[..., self.column] + self.boundary)) * self.basis_scale
        return torch.cat([u, sines], -1)

    def features(
        self, covariates: Float[Tensor, "*cell covariate"], weights: Weights
    ) -> Float[Tensor, "*cell feature"]:
        """Linear and sine features, centred on the training cells."""
        return self.raw_features(self.scaled(covariates)) - self.feature_location


class GPJointEncoder(GPEncoder):
    """`GPEncoder` plus 150 random Fourier features of a joint RBF kernel: covariates may interact.

    Length-scale 0.8 in units of u (Rahimi and Recht, 2007). The frequencies are fixed numbers of the encoder.
    """

    name = "gp_joint"
    num_fourier: ClassVar[int] = 150
    joint_length_scale: ClassVar[float] = 0.8

    fourier_frequency: Tensor
    fourier_phase: Tensor

    def prepare(self, u: Float[Tensor, "cell covariate"]) -> None:
        """Draw the frequencies from a generator of their own."""
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(u.shape[1], self.num_fourier, generator=generator, dtype=torch.float64)
        phase = torch.rand(self.num_fourier, generator=generator, dtype=torch.float64)
        self.register_buffer("fourier_frequency", normal / self.joint_length_scale)
        self.register_buffer("fourier_phase", 2 * math.pi * phase)
        super().prepare(u)

    @property
    def feature_names(self) -> list[tuple[int, str]]:
        """Additive features, then the joint ones."""
        return super().feature_names + [(-1, f"joint {i}") for i in range(self.num_fourier)]

    def raw_features(self, u: Float[Tensor, "*cell covariate"]) -> Float[Tensor, "*cell feature"]:
        """Additive features and cosines of random projections."""
        joint = torch.cos(u @ self.fourier_frequency + self.fourier_phase) * math.sqrt(2 / self.num_fourier)
        return torch.cat([super().raw_features(u), joint], -1)


class NAMEncoder(Encoder):
    """Neural additive model, the encoder of the paper: one small network a covariate, summed.

    Two hidden layers of 32 SiLU units, all covariates in one batched computation. Hidden weights are sample sites with
    Normal priors (a weight decay); the plan keeps them as point masses and gives the last layer a posterior.
    """

    name = "nam"
    hidden = ("encoder_hidden_1", "encoder_hidden_2")
    num_hidden: ClassVar[int] = 32

    feature_scale: Tensor

    def prepare(self, u: Float[Tensor, "cell covariate"]) -> None:
        """Scale of the features: unit mean square a covariate for hidden weights at their prior."""
        self.register_buffer("feature_scale", torch.tensor(1.5 / math.sqrt(self.num_hidden), dtype=u.dtype))

    @property
    def feature_names(self) -> list[tuple[int, str]]:
        """The last hidden units of every covariate."""
        return [(j, f"unit {h}") for j in range(self.num_covariates) for h in range(self.num_hidden)]

    def hidden_weights(self) -> Weights:
        """Slope and offset of the first layer, weights and offset of the second."""
        m, width, zero = self.num_covariates, self.num_hidden, self.feature_scale.new_zeros(())
        first = dist.Normal(zero, 1.5).expand((m, 2, width)).to_event(3)
        second = dist.Normal(zero, 1 / math.sqrt(width)).expand((m, width + 1, width)).to_event(3)
        return {
            "encoder_hidden_1": pyro.sample("encoder_hidden_1", first),
            "encoder_hidden_2": pyro.sample("encoder_hidden_2", second),
        }

    def features(
        self, covariates: Float[Tensor, "*cell covariate"], weights: Weights
    ) -> Float[Tensor, "*cell feature"]:
        """Hidden units of all covariates; their functions are zero at the mean of each covariate."""
        first = without_cell_axis(weights["encoder_hidden_1"], 3)
        second = without_cell_axis(weights["encoder_hidden_2"], 3)
        u = self.scaled(covariates)

        def units(u: Tensor) -> Tensor:
            columns = u.mT.unsqueeze(-1)  # covariate, cell, 1
            h = silu(columns * first[..., :1, :] + first[..., 1:, :])
            return silu(h @ second[..., :-1, :] + second[..., -1:, :])  # (*draw, covariate, cell, unit)

        centred = (units(u) - units(torch.zeros_like(u[..., :1, :]))) * self.feature_scale
        return centred.transpose(-3, -2).flatten(-2)


ENCODERS: dict[str, type[Encoder]] = {cls.name: cls for cls in (GPEncoder, GPJointEncoder, NAMEncoder, LinearEncoder)}
