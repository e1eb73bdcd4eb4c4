"""Environment VAE: cells of many environments, each of which shifts few latent causes.

Bertin, "Towards Learning Cell Causal-Embeddings" (2020), and Lopez et al., "Learning Causal Representations of Single
Cells via Sparse Mechanism Shift Modeling" (2022), as one generative model whose parts are swapped:

| symbol | name | shape | meaning |
|---|---|---|---|
| e_i | ``environment`` | (cell,) | drug, perturbation or condition of a cell |
| u_e | ``descriptors`` | (condition, feature) | what is known of an environment: fingerprint, dose |
| l_i | ``library`` | (cell,) | total counts of a cell |
| mu_e | ``shift`` | (condition, latent) | what the environment does to the latent causes; few are not zero |
| beta_e | ``gene_effects`` | (condition, gene) | what it does to single genes, past the latent causes |
| Z_i | ``z`` | (cell, latent) | latent causes of a cell |
| C_i | | (cell, latent) | Z_i after the causal map; Z_i itself without one |
| X_i | ``expression`` | (cell, gene) | what the causes explain |

    mu_e ~ environment prior,   beta_e ~ gene effects
    Z_i ~ Normal(mu_e(i), sigma_e(i)^2),   C_i = causal map(Z_i),   X_i ~ likelihood(decoder(C_i) + beta_e(i))

The sparse change is in Z: a change of the law of Z_j moves every descendant of C_j, so that C is not sparse. Weights of
decoder, causal map and likelihood are point estimates; targets, shifts and gene effects have posteriors.

**What is identified.** Without environments Z is known up to a rotation only. Environments that shift single latents
fix the rotation; about three environments a latent are needed. A causal map is not identified by shifts of Z alone
(``intervention="noise"``): the decoder of Z, and the map followed by another decoder, are the same law in every
environment. Interventions that cut the incoming edges of their target (``"hard"``) identify it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from .environment_vae_parts import FAMILIES, parts_for, rebuilt_parts
from .environment_vae_simulation import population_effects, simulated_like
from .parts.causal_maps import CausalMap
from .parts.decoders import Decoder
from .parts.environment_priors import EnvironmentPrior
from .parts.errors import DataError
from .parts.gene_effects import GeneEffects
from .parts.kinds import described
from .parts.likelihoods import Likelihood
from .schema import Input, Schema

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Intervention = Literal["noise", "hard"]


class EnvironmentVAE(torch.nn.Module):
    """The model of this module's docstring.

    Parameters
    ----------
    environment_prior
        Law of the shifts, such as `SingleEffects`.
    decoder
        Maps latents to genes.
    likelihood
        Law of the expression given the decoder's output.
    causal_map
        Map from Z to C, None for C = Z.
    intervention
        ``"noise"``: an environment changes the law of Z alone; ``"hard"``: it also cuts its targets from their causes.
    gene_effects
        Effects on single genes beside the shifts, None for none.
    conditions
        Names of the environments.
    name
        What the model is called; published variants have their own (see `embergraph.models.translation_vae`).

    Raises
    ------
    DataError
        If parts do not fit together.
    """

    def __init__(
        self,
        environment_prior: EnvironmentPrior,
        decoder: Decoder,
        likelihood: Likelihood,
        *,
        causal_map: CausalMap | None = None,
        intervention: Intervention = "noise",
        gene_effects: GeneEffects | None = None,
        conditions: Sequence[str] = (),
        name: str = "Environment VAE",
    ) -> None:
        super().__init__()
        if intervention not in get_args(Intervention):
            raise DataError(f"intervention: found {intervention!r}; wanted one of {get_args(Intervention)}")
        if intervention == "hard" and causal_map is None:
            raise DataError("intervention: found 'hard' without a causal map; wanted causal_map='linear' or another")
        if intervention == "hard" and not environment_prior.has_targets:
            found = type(environment_prior).__name__
            raise DataError(f"environment_prior: found {found}, which names no targets to cut; wanted SingleEffects")
        parts = {"decoder": decoder, "causal_map": causal_map}
        for part, module in parts.items():
            wanted = environment_prior.num_latents
            if module is not None and module.num_latents != wanted:
                raise DataError(f"{part}: found {module.num_latents} latents; wanted {wanted}, as the prior")
        if likelihood.num_genes != decoder.num_genes:
            raise DataError(f"likelihood: found {likelihood.num_genes} genes; wanted {decoder.num_genes}")
        self.environment_prior, self.decoder, self.likelihood = environment_prior, decoder, likelihood
        self.causal_map, self.intervention, self.gene_effects, self.name = causal_map, intervention, gene_effects, name
        self.conditions = [str(c) for c in conditions] or [str(e) for e in range(environment_prior.num_environments)]

    @classmethod
    def for_data(
        cls,
        data: xr.Dataset,
        num_latents: int = 10,
        *,
        environment_prior: str | EnvironmentPrior = "single_effects",
        max_targets: int | None = None,
        control: str | None = None,
        decoder: str | Decoder = "auto",
        conditional: bool = False,
        likelihood: str | Likelihood = "auto",
        causal_map: str | CausalMap | None = None,
        gene_effects: bool | GeneEffects = False,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Make a model of the right sizes for `data`.

        Parameters
        ----------
        data
            Dataset with ``expression (cell, gene)``, ``environment (cell)`` and names of environments in the coordinate
            ``condition``; ``descriptors (condition, feature)`` where parts look at them.
        num_latents
            d. A third more than expected is better than too few; what is not needed stays empty.
        environment_prior
            ``"single_effects"``, ``"spike_slab"``, ``"descriptors"``, ``"standard"``, ``"gated"``, ``"masked"``, or a
            prior.
        max_targets
            Largest number of latents that an environment may shift (``"single_effects"``); by default half of d or
            of the environments, at most 5.
        control
            Name of the environment whose shifts are zero.
        decoder
            ``"linear"``, ``"mlp"``, or a `Decoder`; ``"auto"`` is linear for real values and an MLP for counts.
        conditional
            Whether the decoder is given the descriptors too.
        likelihood
            ``"gaussian"``, ``"student_t"``, ``"negative_binomial"``, ``"poisson"``, or a `Likelihood`; ``"auto"`` is
            negative binomial for counts, else Gaussian.
        causal_map
            ``"linear"``, ``"autoregressive"``, or a `CausalMap`.
        gene_effects
            Whether environments also act on single genes; or the prior of these effects.
        seed
            Seed of the starting weights.
        **options
            Passed to `EnvironmentVAE`.

        Raises
        ------
        DataError
            If a variable is missing, or a name or size is not usable.
        """
        parts = parts_for(
            data, num_latents, environment_prior, max_targets, control, decoder, conditional, likelihood, causal_map,
            gene_effects, seed,
        )  # fmt: skip
        return cls(**parts, conditions=[str(c) for c in data["condition"].values], **options)

    @property
    def num_latents(self) -> int:
        """Number of latents, d."""
        return self.environment_prior.num_latents

    @property
    def num_genes(self) -> int:
        """Number of genes, p."""
        return self.decoder.num_genes

    @property
    def num_environments(self) -> int:
        """Number of environments, E, the control among them."""
        return self.environment_prior.num_environments

    @property
    def control(self) -> int | None:
        """Position of the control, whose shifts are zero."""
        return self.environment_prior.control

    @property
    def uses_descriptors(self) -> bool:
        """Whether prior or decoder look at descriptors."""
        return self.environment_prior.uses_descriptors or self.decoder.uses_descriptors

    @property
    def schema(self) -> Schema:
        """Inputs of the model and dims of its sites."""
        inputs = {"environment": Input(("cell",), "int"), "expression": Input(("cell", "gene"), observed=True)}
        if self.uses_descriptors:
            inputs["descriptors"] = Input(("condition", "feature"))
        if self.likelihood.counts:
            inputs["library"] = Input(("cell",))
        return Schema(
            inputs=inputs,
            site_dims={
                **self.environment_prior.site_dims,
                **({} if self.gene_effects is None else self.gene_effects.site_dims),
                "shift": ("condition", "latent"),
                "z": ("latent",),
                "expression": ("gene",),
            },
            coords={"latent": self.latents, "condition": self.conditions},
        )

    @property
    def latents(self) -> list[str]:
        """Names of the latents."""
        return [f"z{k}" for k in range(self.num_latents)]

    def forward(
        self,
        environment: Int[Tensor, " cell"],
        expression: Float[Tensor, "cell gene"] | None = None,
        descriptors: Float[Tensor, "condition feature"] | None = None,
        library: Float[Tensor, " cell"] | None = None,
    ) -> Float[Tensor, "*draw cell gene"]:
        """Generate, or score, the expression of all cells."""
        law = self.environment_prior(descriptors)
        mu = pyro.deterministic("shift", law.mean, event_dim=2)  # (condition, latent)
        beta = None if self.gene_effects is None else self.gene_effects()  # (condition, gene)
        with pyro.plate("cell", environment.shape[-1], dim=-1):
            e_i = pyro.subsample(environment, event_dim=0)
            l_i = None if library is None else pyro.subsample(library, event_dim=0)
            X_i = None if expression is None else pyro.subsample(expression, event_dim=1)
            mean = of_cells(mu, e_i)
            sigma = torch.ones_like(mean) if law.log_scale is None else of_cells(law.log_scale, e_i).exp()
            Z_i = pyro.sample("z", dist.Normal(mean, sigma).to_event(1))  # (cell, latent)
            output = self.output(Z_i, e_i, descriptors, is_target=law.is_target, gene_effects=beta)
            return pyro.sample("expression", self.likelihood(output, l_i), obs=X_i)  # (cell, gene)

    def output(
        self,
        Z_i: Float[Tensor, "*draw cell latent"],
        e_i: Int[Tensor, " cell"],
        descriptors: Float[Tensor, "condition feature"] | None = None,
        *,
        is_target: Float[Tensor, "*draw condition latent"] | None = None,
        gene_effects: Float[Tensor, "*draw condition gene"] | None = None,
    ) -> Float[Tensor, "*draw cell gene"]:
        """What the likelihood is given: the decoded causes of cells, plus the effects on single genes.

        Parameters
        ----------
        Z_i, e_i
            Latents and environments of some cells.
        descriptors
            Of all environments.
        is_target
            Targets by environment, which hard interventions cut from their causes; a probability cuts by that share.
        gene_effects
            By environment.
        """
        C_i = Z_i
        if self.causal_map is not None:
            hard = self.intervention == "hard" and is_target is not None
            C_i = self.causal_map(Z_i, of_cells(is_target, e_i) if hard and is_target is not None else None)
        u_i = None
        if self.decoder.uses_descriptors and descriptors is not None:
            u_i = descriptors[e_i].expand(*C_i.shape[:-1], -1)
        decoded = self.decoder(C_i, u_i)
        return decoded if gene_effects is None else decoded + of_cells(gene_effects, e_i)

    def simulate(
        self,
        environment: Sequence[int] | Int[Tensor, " cell"],
        *,
        descriptors: Float[Tensor, "condition feature"] | None = None,
        library: Float[Tensor, " cell"] | None = None,
        seed: int = 0,
    ) -> xr.Dataset:
        """Draw shifts, latents and expression; decoder, causal map and likelihood are as they are.

        Parameters
        ----------
        environment
            Of each cell.
        descriptors, library
            Where the model uses them.
        seed
            Seed of the draws.

        Returns
        -------
        xr.Dataset
            ``expression`` and ``environment``, with ``true_z``, ``true_shift`` and ``true_effect`` beside them: effects
            on genes against the control, or else the mean of the environments, in many cells (log2 ratios for counts).
        """
        e = torch.as_tensor(environment, dtype=torch.long)
        with torch.random.fork_rng(), torch.no_grad(), poutine.block():
            torch.manual_seed(seed)
            trace = poutine.trace(self).get_trace(e, None, descriptors, library)
            effect = population_effects(self, trace, descriptors).numpy()
        value = {name: trace.nodes[name]["value"].numpy() for name in ("z", "shift", "expression")}
        variables: dict[str, Any] = {
            "expression": (("cell", "gene"), value["expression"]),
            "environment": (("cell",), e.numpy()),
            "true_z": (("cell", "latent"), value["z"]),
            "true_shift": (("condition", "latent"), value["shift"]),
            "true_effect": (("condition", "gene"), effect),
        }
        if library is not None:
            variables["library"] = (("cell",), library.numpy())
        if descriptors is not None:
            variables["descriptors"] = (("condition", "feature"), descriptors.numpy())
        return xr.Dataset(variables, {"condition": self.conditions, "latent": self.latents})

    def simulate_like(self, data: xr.Dataset, *, seed: int = 0) -> xr.Dataset:
        """`simulate` for the environments (and descriptors and library sizes) of `data`, with its names.

        Raises
        ------
        SchemaError
            If `data` lack what the model takes.
        """
        return simulated_like(self, data, seed)

    def settings(self) -> dict[str, Any] | None:
        """JSON description for saving, None when a prior or part has no name that a file may carry."""
        parts = {role: described(known, getattr(self, role)) for role, known in FAMILIES.items()}
        if any(parts[role] is None for role in FAMILIES if getattr(self, role) is not None):
            return None
        return {**parts, "intervention": self.intervention, "conditions": self.conditions, "name": self.name}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Rebuild from `settings`; the numbers are filled by the saved state."""
        return cls(**{**settings, **rebuilt_parts(settings)})


def of_cells(table: Float[Tensor, "*draw condition k"], e_i: Int[Tensor, " cell"]) -> Float[Tensor, "*draw cell k"]:
    """Rows of a table of environments, one a cell; the cells take the place of the axis of 1s beside draws."""
    rows = table.index_select(-2, e_i)
    return rows if rows.dim() == 2 else rows.squeeze(-3)
