"""Guide of the Environment VAE: an encoder for the latents of cells, closed forms for everything about environments.

    q(z, target, size, beta) = q(target, size) q(beta) prod_i Normal(z_i; m(x_i), diag v(x_i))

Given the encoder, what an environment does enters the ELBO through KL(q(z_i) || p(z_i | mu_e)), which is linear in the
moments of mu_e: nothing of it is sampled, and its posterior has a closed form (`update`). The latents of a cell do not
depend on the drawn targets, and decoder, causal map and likelihood are points: intervals of shifts are conditional on
the decoder, and too narrow where it is not linear. Effects on single genes, and targets of hard interventions, enter
the likelihood of the cells by their posterior means.

**The rotation.** The KL alone cannot tell one rotation of the latents from another fast enough: the gradient that does
is drowned in the noise of the minibatches. Training starts with free means of the environments; then the rotation that
makes the table of these means sparse is found without the network (`sparse_rotation`) and absorbed exactly into the
location head of the encoder and the first layer of the decoder.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..models.environment_vae import EnvironmentVAE, of_cells
from ..models.environment_vae_parts import rebuilt
from ..models.parts.environment_priors import ENVIRONMENT_PRIORS, EnvironmentPrior, MaskedShifts
from ..models.parts.errors import DataError
from ..models.parts.gene_effects import GeneEffects
from ..models.parts.kinds import described
from .parts.cell_encoders import CellEncoder
from .parts.encoded_cells import EncodedCells
from .parts.environment_posteriors import EnvironmentStatistics, MaskedPosterior, Moments, posterior_for
from .parts.gene_effects import EffectStatistics, GeneEffectsPosterior
from .parts.latent_axes import sparse_axes_of, turn_decoder
from .parts.penalties import PENALTIES, Penalty
from .parts.stages import Stages

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Parameterisation = Literal["direct", "residual"]
CHUNK = 4096


class EnvironmentVAEGuide(nn.Module):
    """The guide of this module's docstring; `for_model` makes one that fits.

    Parameters
    ----------
    prior, effects_prior
        Of the model: of shifts, and of effects on single genes if it has them. Shared with the model.
    encoder
        Gives moments of q(z) from expression.
    parameterisation
        ``"direct"``: the encoder gives the location of q(z); ``"residual"``: the location minus the mean of the shift,
        as in the Translation VAE. The same family of posteriors.
    stages
        When closed forms and rotations are due.
    penalties
        Terms added to the loss, see `guides.parts.penalties`.
    relaxed_masks
        Draw the masks of sVAE+ by a straight-through relaxation, a mask a cell, as published, instead of taking their
        expectation exactly.

    Raises
    ------
    DataError
        If an option is unknown, or the parts do not fit together.
    """

    kl_weight: Tensor
    rotation_agreement: Tensor
    rotations_done: Tensor

    def __init__(
        self,
        prior: EnvironmentPrior,
        encoder: CellEncoder,
        *,
        effects_prior: GeneEffects | None = None,
        parameterisation: Parameterisation = "direct",
        stages: Stages | None = None,
        penalties: Sequence[Penalty] = (),
        relaxed_masks: bool = False,
    ) -> None:
        super().__init__()
        if parameterisation not in get_args(Parameterisation):
            raise DataError(f"parameterisation: found {parameterisation!r}; wanted one of {get_args(Parameterisation)}")
        if encoder.num_latents != prior.num_latents:
            raise DataError(f"encoder: found {encoder.num_latents} latents; wanted {prior.num_latents}, as the model")
        if relaxed_masks and not isinstance(prior, MaskedShifts):
            raise DataError(f"relaxed_masks: found {type(prior).__name__}; wanted MaskedShifts, the prior of sVAE+")
        self.prior, self.effects_prior, self.encoder = prior, effects_prior, encoder
        self.parameterisation, self.relaxed_masks = parameterisation, relaxed_masks
        self.stages = stages or Stages()
        self.penalties = nn.ModuleList(penalties)
        self.environment = posterior_for(prior)
        self.gene_effects = None if effects_prior is None else GeneEffectsPosterior(effects_prior)
        self.register_buffer("kl_weight", torch.ones(()))
        self.register_buffer("rotation_agreement", torch.tensor(torch.nan))
        self.register_buffer("rotations_done", torch.zeros((), dtype=torch.long))
        self._constant: tuple[Any, Tensor] | None = None

    @classmethod
    def for_model(cls, model: EnvironmentVAE, encoder: CellEncoder, **options: Any) -> Self:
        """Make a guide that shares the priors of `model`; options are those of the class."""
        if encoder.num_genes != model.num_genes:
            raise DataError(f"encoder: found {encoder.num_genes} genes; wanted {model.num_genes}, as the model")
        return cls(model.environment_prior, encoder, effects_prior=model.gene_effects, **options)

    def attach(self, model: EnvironmentVAE) -> None:
        """Share the priors of `model`, after both were read from disk."""
        self.prior, self.effects_prior = model.environment_prior, model.gene_effects

    def forward(
        self,
        environment: Int[Tensor, " cell"],
        expression: Float[Tensor, "cell gene"],
        descriptors: Float[Tensor, "condition feature"] | None = None,
        library: Float[Tensor, " cell"] | None = None,
    ) -> None:
        """Draw what environments do, and the latents of all cells."""
        self.draw_environments(descriptors)
        if self.gene_effects is not None and self.effects_prior is not None:
            self.gene_effects(self.effects_prior)
        with pyro.plate("cell", len(environment), dim=-1):
            e_i = pyro.subsample(environment, event_dim=0)
            x_i = pyro.subsample(expression, event_dim=1)
            l_i = None if library is None else pyro.subsample(library, event_dim=0)
            prior = self.environment.moments(self.prior, descriptors)
            loc, log_variance = self.encode(x_i, e_i, l_i, descriptors, prior.mean)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    def draw_environments(self, descriptors: Float[Tensor, "condition feature"] | None = None) -> None:
        """Draw what environments do to the latents."""
        self.environment(self.prior, descriptors)

    def encode(
        self,
        expression: Float[Tensor, "cell gene"],
        environment: Int[Tensor, " cell"],
        library: Float[Tensor, " cell"] | None,
        descriptors: Float[Tensor, "condition feature"] | None,
        mean: Float[Tensor, "condition latent"],
    ) -> tuple[Float[Tensor, "cell latent"], Float[Tensor, "cell latent"]]:
        """Location and log variance of q(z) of some cells, given the means of their environments."""
        u_i = None
        if self.encoder.sees != "x":
            u_i = one_hot(environment, len(mean)).to(mean) if descriptors is None else descriptors[environment]
        loc, log_variance = self.encoder(expression, library, u_i)
        if self.parameterisation == "residual":
            loc = loc + of_cells(mean, environment)
        return loc, log_variance

    def objective(self, model: EnvironmentVAE, inputs: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Negative ELBO from one draw of z a cell; everything about environments is integrated exactly."""
        descriptors = inputs.get("descriptors")
        with pyro.plate("cell", len(inputs["environment"])) as rows:
            rows = rows.to(inputs["environment"].device)  # all rows come from the CPU
        weight = len(inputs["environment"]) / len(rows)
        x_i, e_i = (inputs[name].index_select(0, rows) for name in ("expression", "environment"))
        l_i = inputs["library"].index_select(0, rows) if "library" in inputs else None
        prior = self.environment.moments(model.environment_prior, descriptors)
        loc, log_variance = self.encode(x_i, e_i, l_i, descriptors, prior.mean)
        z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
        output = model.output(
            z, e_i, descriptors, is_target=self.expected_targets(model), gene_effects=self.expected_effects()
        )
        score = model.likelihood.log_score(output, l_i, x_i).sum()
        divergence = self.divergence(loc, log_variance, e_i, prior)
        loss = weight * (self.kl_weight * divergence - score - self.constant(model, inputs["expression"])[rows].sum())
        loss = loss + self.kl_weight * self.global_divergence(model, descriptors)
        if self.penalties:
            u_i = None if descriptors is None else descriptors[e_i]
            cells = EncodedCells(x_i, e_i, l_i, u_i, loc, log_variance, z, output, weight)
            for penalty in self.penalties:
                loss = loss + penalty(model, cells)
        return loss

    def divergence(
        self,
        loc: Float[Tensor, "cell latent"],
        log_variance: Float[Tensor, "cell latent"],
        e_i: Int[Tensor, " cell"],
        prior: Moments,
    ) -> Float[Tensor, ""]:
        """Sum over cells of E KL(q(z_i) || Normal(mu_e, sigma_e^2)), exact over the posterior of mu_e."""
        if (
            self.relaxed_masks
            and isinstance(self.environment, MaskedPosterior)
            and isinstance(self.prior, MaskedShifts)
        ):
            mean = self.environment.relaxed_mask(e_i) * of_cells(self.prior.size, e_i)
            squares = log_variance.exp() + (loc - mean).square()
        else:
            squares = log_variance.exp() + (loc - of_cells(prior.mean, e_i)).square() + of_cells(prior.variance, e_i)
        if prior.log_scale is None:
            return 0.5 * (squares - log_variance - 1).sum()
        log_scale = of_cells(prior.log_scale, e_i)
        return 0.5 * (squares * (-2 * log_scale).exp() + 2 * log_scale - log_variance - 1).sum()

    def global_divergence(self, model: EnvironmentVAE, descriptors: Tensor | None) -> Float[Tensor, ""]:
        """KL of everything that belongs to environments."""
        total = self.environment.kl(model.environment_prior, descriptors)
        if self.gene_effects is not None and model.gene_effects is not None:
            total = total + self.gene_effects.kl(model.gene_effects)
        return total

    def expected_targets(self, model: EnvironmentVAE) -> Float[Tensor, "condition latent"] | None:
        """Probabilities of targets, which hard interventions cut by."""
        return self.environment.target_probability() if model.intervention == "hard" else None

    def expected_effects(self) -> Float[Tensor, "condition gene"] | None:
        """Posterior mean of the effects on single genes."""
        return None if self.gene_effects is None else self.gene_effects.mean()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept of the data, so that fits can go to other processes."""
        return self.__dict__ | {"_constant": None}

    def constant(self, model: EnvironmentVAE, expression: Float[Tensor, "cell gene"]) -> Float[Tensor, " cell"]:
        """Terms of the log-likelihood that depend on the data alone, computed once for each data set."""
        if self._constant is None or self._constant[0]() is not expression:
            values = expression.new_empty(len(expression))  # filled in place: many small results fragment the memory
            with torch.no_grad():
                for rows in torch.arange(len(expression), device=expression.device).split(CHUNK):
                    values[rows] = model.likelihood.base_measure(expression[rows])
            self._constant = (weakref.ref(expression), values)
        return self._constant[1]

    @torch.no_grad()
    def update(self, model: EnvironmentVAE, inputs: Mapping[str, Tensor], step: int) -> None:
        """Closed forms on all cells: rotation where it is due, environments, effects on single genes."""
        if step < self.stages.start:
            return
        descriptors = inputs.get("descriptors")
        statistics = self.statistics(model, inputs)
        done = int(self.rotations_done)
        if done < len(self.stages.rotate_at) and step >= self.stages.rotate_at[done]:
            statistics = self.rotate(model, statistics)
            self.rotations_done.fill_(sum(step >= due for due in self.stages.rotate_at))
        free = step < self.stages.free_until
        self.environment.update(model.environment_prior, statistics, descriptors, free=free)
        if self.gene_effects is not None and step >= self.stages.effects_from:
            self.update_effects(model, inputs)

    def chunks(
        self, model: EnvironmentVAE, inputs: Mapping[str, Tensor], size: int = CHUNK
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of the data, part by part, with location and log variance of their latents."""
        descriptors = inputs.get("descriptors")
        prior = self.environment.moments(model.environment_prior, descriptors)
        for rows in torch.arange(len(inputs["environment"]), device=inputs["environment"].device).split(size):
            library = inputs["library"][rows] if "library" in inputs else None
            e_i = inputs["environment"][rows]
            yield rows, *self.encode(inputs["expression"][rows], e_i, library, descriptors, prior.mean)

    def statistics(self, model: EnvironmentVAE, inputs: Mapping[str, Tensor]) -> EnvironmentStatistics:
        """Means of q(z) by environment, which is all that its posterior needs of the cells."""
        environment = inputs["environment"]
        total = torch.zeros(model.num_environments, model.num_latents, dtype=torch.float64, device=environment.device)
        variance = total.new_zeros(model.num_latents)
        for rows, loc, log_variance in self.chunks(model, inputs):
            total.index_add_(0, environment[rows], loc.double())
            variance += log_variance.double().exp().sum(0)
        count = torch.bincount(environment, minlength=model.num_environments).double()
        return EnvironmentStatistics(count, total / count.clamp_min(1).unsqueeze(-1), variance / len(environment))

    def rotate(self, model: EnvironmentVAE, statistics: EnvironmentStatistics) -> EnvironmentStatistics:
        """Turn the latents so that shifts are sparse; encoder and decoder absorb it, the fit stays as it was."""
        rows, mean, variance = statistics.count > 0, statistics.mean, statistics.variance
        control = None if model.control is None or not rows[model.control] else int(rows[: model.control].sum())
        axes = sparse_axes_of(mean[rows], control)
        self.rotation_agreement.fill_(axes.agreement)
        if axes.rotation is not None:
            R = axes.rotation.to(mean)
            self.encoder.rotate(R)
            turn_decoder(model.decoder, R)
            mean, variance = mean @ R, variance @ R.square()
        if axes.origin is not None and model.control is None:
            self.encoder.translate(axes.origin)
            model.decoder.translate(axes.origin)
            mean = mean - axes.origin
        return EnvironmentStatistics(statistics.count, mean, variance)

    def update_effects(self, model: EnvironmentVAE, inputs: Mapping[str, Tensor]) -> None:
        """Posterior of the effects on single genes, from a draw of the latents."""
        if self.gene_effects is None or model.gene_effects is None:
            return
        descriptors, environment = inputs.get("descriptors"), inputs["environment"]
        sums = EffectStatistics.empty(model.num_environments, model.num_genes, device=environment.device)
        current, targets = self.gene_effects.mean(), self.expected_targets(model)
        for rows, loc, log_variance in self.chunks(model, inputs):
            e_i, z = environment[rows], loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
            output = model.output(z, e_i, descriptors, is_target=targets, gene_effects=current)
            library = inputs["library"][rows] if "library" in inputs else None
            mean = model.likelihood.mean(output, library)
            if model.likelihood.counts:
                dispersion = getattr(model.likelihood, "inverse_dispersion", math.inf)
                sums.add_counts(inputs["expression"][rows], mean, e_i, dispersion)
            else:
                scale: Any = model.likelihood.scale
                sums.add_gaussian(inputs["expression"][rows], mean, e_i, scale)
        self.gene_effects.update(model.gene_effects, sums.estimate(current), sums.information)

    def settings(self) -> dict[str, Any] | None:
        """JSON description; the numbers are in the saved state. None when a part has no name that a file may carry."""
        parts: dict[str, Any] = {
            "prior": described(ENVIRONMENT_PRIORS, self.prior),
            "encoder": described({"CellEncoder": CellEncoder}, self.encoder),
            "penalties": [described(PENALTIES, penalty) for penalty in self.penalties],
        }
        if None in (parts["prior"], parts["encoder"], *parts["penalties"]):
            return None
        return {
            **parts,
            "effects_prior": None if self.effects_prior is None else self.effects_prior.settings(),
            "parameterisation": self.parameterisation,
            "stages": asdict(self.stages),
            "relaxed_masks": self.relaxed_masks,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A guide of the described shapes, whose numbers the saved state then fills."""
        options = dict(settings)
        prior = rebuilt("environment_prior", ENVIRONMENT_PRIORS, options.pop("prior"))
        effects = options.pop("effects_prior")
        stages = {**options["stages"], "rotate_at": tuple(options["stages"]["rotate_at"])}
        return cls(
            prior,
            CellEncoder.from_settings(options.pop("encoder")),
            effects_prior=effects and GeneEffects.from_settings(effects),
            **{
                **options,
                "stages": Stages(**stages),
                "penalties": [rebuilt("penalty", PENALTIES, penalty) for penalty in options["penalties"]],
            },
        )
