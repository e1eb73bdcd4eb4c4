"""NOTMAD: networks of single cells as covariate-dependent mixtures of archetypal DAGs.

Lengerich, Ellington, Aragam, Xing and Kellis, "NOTMAD: Estimating Bayesian Networks with Sample-Specific Structures and
Parameters" (2021), written as a generative model:

| symbol | name | shape | meaning |
|---|---|---|---|
| C | ``covariates`` | (cell, covariate) | what may change the network; never a function of X |
| X | ``expression`` | (cell, gene) | what the network explains |
| pi | ``order`` | (rank,) | genes from first to last; regulators come before their targets |
| | ``edges`` | (archetype, edge) | effects on the allowed edges |
| W_k | ``archetypes`` | (archetype, regulator, target) | archetypal networks: `edges` put into place |
| b_k | ``intercepts`` | (archetype, gene) | archetypal intercepts |
| sigma | ``sigma`` | () or (gene,) | scale of the noise, one for all genes or one a gene |
| theta | ``encoder_*`` | | weights of the covariate encoder f_theta |
| tau_z | ``mixture_scale`` | () | spread of cells with the same covariates; none: they share a network |
| eta_i | ``logits`` | (cell, archetype) | f_theta(C_i), or around it where there is a tau_z |
| Z_i | | (cell, archetype) | softmax eta_i, weights of the archetypes in a cell |

    pi ~ uniform over orders,   w_ke ~ edge prior,   b_kj ~ Normal(0, 1),   sigma ~ LogNormal(0, 0.5)
    eta_i ~ Normal(f_theta(C_i), tau_z),   Z_i = softmax eta_i,   W_i = sum_k Z_ik W_k,   b_i = sum_k Z_ik b_k
    X_i = b_i + X_i W_i + e_i,   e_ij ~ Normal(0, sigma_j^2)

A mixture of DAGs that share an order is a DAG for every Z; DAGs with different orders mix to cyclic networks, because a
softmax is never exactly zero. Hence the forms of the model, chosen by `order`:

* **exact** (``"uniform"`` or a given order): every network is acyclic by construction.
* **projected** (``"projected"``): archetypes have orders of their own, or none, and the network of a cell is the DAG
  that keeps the heaviest edges of its mixture, W_i = project(sum_k Z_ik W_k): edges may turn round between cells.
* **relaxed** (``None``): all p(p-1) edges are allowed and an acyclicity factor, exp(-weight n h), punishes cycles
  (eq. 3 of the paper). An energy, not a normalised density: for point estimates only.

Exact and projected form are generative: prior, simulation and posterior. Softmax, dense archetypes and Gaussian noise
are arguments (`mixing`, `archetypes`, `likelihood`), as all priors are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from torch import Tensor

from .notmad_parts import described_parts, flat_values, for_data, parts_from, schema_of
from .parts.acyclicity_factor import AcyclicityFactor, OrderMask
from .parts.archetypes import Archetypes, DenseArchetypes
from .parts.distributions import SpikeSlab, UniformOrder, permutation
from .parts.encoders import Encoder
from .parts.errors import DataError
from .parts.mixing import MIXING
from .parts.priors import Prior, PriorLike
from .parts.sem import MixtureSEM
from .parts.sem_likelihoods import GaussianSEM, SEMLikelihood
from .schema import Schema

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["NOTMAD"]

Noise = Literal["equal", "free"]
Mixing = Literal["softmax", "entmax15", "sparsemax", "identity"]


class NOTMAD(torch.nn.Module):
    """The model of this module's docstring.

    Parameters
    ----------
    num_genes
        p.
    encoder
        Maps covariates to archetype logits; `for_data` builds it from the data.
    num_archetypes
        K. Too many do no harm, too few make intervals invalid.
    order
        ``"uniform"``, an order of gene indices, ``"projected"``, or None for the relaxed form.
    noise
        ``"equal"``: one noise scale for all genes, which identifies directions on a common scale; ``"free"``: one a
        gene, for standardised data.
    likelihood
        `GaussianSEM` (default), `StudentSEM`, `LogisticSEM` or `BinarySEM`.
    mixing
        ``"softmax"`` (default), ``"entmax15"`` or ``"sparsemax"`` (exact zeros), or ``"identity"``.
    archetypes
        `DenseArchetypes` (default), `LowRankArchetypes` or `FactorNetworks`, which are no DAGs of genes.
    mixture_scale
        tau_z: a positive number, or a prior of it; None (default) is 0, the paper's model.
    edge_prior, intercept_prior, noise_prior
        Any Pyro distribution of scalars, `SharedSpikeSlab`, or a callable (see `Prior`).
    acyclicity
        `AcyclicityFactor` or `OrderMask` of the relaxed form; unused in the others.

    Raises
    ------
    DataError
        If a size, an option or the order is not usable, or options exclude each other.
    """

    mixture_scale: Tensor | None
    fixed_order: Tensor | None
    acyclicity: AcyclicityFactor | OrderMask | None
    made_for: Mapping[str, list[str]] = {}
    """Names of the genes and covariates that `for_data` has seen."""

    def __init__(
        self,
        num_genes: int,
        encoder: Encoder,
        num_archetypes: int = 4,
        *,
        order: Literal["uniform", "projected"] | Sequence[int] | Int[Tensor, " gene"] | None = "uniform",
        noise: Noise = "equal",
        likelihood: SEMLikelihood | None = None,
        mixing: Mixing = "softmax",
        archetypes: Archetypes | None = None,
        mixture_scale: float | PriorLike | None = None,
        edge_prior: PriorLike | None = None,
        intercept_prior: PriorLike | None = None,
        noise_prior: PriorLike | None = None,
        acyclicity: AcyclicityFactor | OrderMask | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("num_genes", num_genes, 2), ("num_archetypes", num_archetypes, 1)):
            if not isinstance(value, int) or value < least:
                raise DataError(f"{name}: found {value!r}; wanted a whole number of at least {least}")
        if noise not in ("equal", "free"):
            raise DataError(f"noise: found {noise!r}; wanted 'equal' or 'free'")
        if mixing not in MIXING:
            raise DataError(f"mixing: found {mixing!r}; wanted one of {list(MIXING)}")
        self.num_genes, self.num_archetypes, self.noise, self.mixing = num_genes, num_archetypes, noise, mixing
        self.encoder = encoder
        self.likelihood = likelihood if likelihood is not None else GaussianSEM()
        self.archetypes = archetypes if archetypes is not None else DenseArchetypes()
        if acyclicity is not None and order is not None:
            raise DataError("acyclicity: found one beside an order, whose networks are acyclic; wanted order=None")
        self.acyclicity = AcyclicityFactor() if acyclicity is None and order is None else acyclicity
        self.edge_prior = Prior(edge_prior or SpikeSlab(0.3, 0.8, 0.05))
        self.intercept_prior = Prior(intercept_prior or dist.Normal(0.0, 1.0))
        self.noise_prior = Prior(noise_prior or dist.LogNormal(0.0, 0.5))
        self.mixture_prior: Prior | None = None
        self.register_buffer("mixture_scale", None)
        if isinstance(mixture_scale, (int, float)):
            self.mixture_scale = torch.tensor(float(mixture_scale))
        elif mixture_scale is not None:
            self.mixture_prior = Prior(mixture_scale)
        self._set_order(order)
        self._check()

    def _set_order(self, order: Any) -> None:
        num_nodes = self.archetypes.num_nodes(self.num_genes)
        self.form = (
            "relaxed" if order is None else "projected" if isinstance(order, str) and order != "uniform" else "exact"
        )
        self.archetypes.check(self.num_genes)
        self.register_buffer("fixed_order", None)
        if isinstance(order, str) and order not in ("uniform", "projected"):
            raise DataError(f"order: found {order!r}; wanted 'uniform', 'projected', a list of gene indices, or None")
        if order is not None and not isinstance(order, str):
            if not all(isinstance(gene, (int, np.integer, Tensor)) for gene in order):
                raise DataError(f"order: found {list(order)}; wanted indices of genes, 0..{num_nodes - 1}, once each")
            self.fixed_order = torch.as_tensor(order, dtype=torch.long)
            if self.fixed_order.shape != (num_nodes,) or not permutation.check(self.fixed_order):
                raise DataError(f"order: found {list(order)}; wanted each of 0..{num_nodes - 1} once")

    def _check(self) -> None:
        K, p = self.num_archetypes, self.num_genes
        self.edge_prior.check("edge_prior", self.archetypes.edge_shape(K, p, ordered=self.form == "exact"))
        self.intercept_prior.check("intercept_prior", (K, p))
        self.noise_prior.check("noise_prior", () if self.noise == "equal" else (p,), positive=True)
        if self.mixture_prior is not None:
            self.mixture_prior.check("mixture_scale", (), positive=True)
        if self.mixture_scale is not None and not 0 < float(self.mixture_scale) < float("inf"):
            raise DataError(f"mixture_scale: found {float(self.mixture_scale)}; wanted a positive number")
        scope = getattr(self.acyclicity, "scope", None)
        if self.form == "relaxed" and self.mixing == "identity" and scope in ("union", "mean"):
            raise DataError(
                f"acyclicity scope: found {scope!r} with mixing 'identity', whose weights no union bounds; "
                "wanted 'samples'"
            )
        if self.form == "projected" and not self.archetypes.acyclic:
            raise DataError("order: found 'projected' with factor networks; wanted 'uniform', an order, or None")
        if self.form == "relaxed" and not self.archetypes.acyclic and scope != "union":
            raise DataError(
                "acyclicity: factor networks are acyclic among factors only; wanted AcyclicityFactor, scope 'union'"
            )
        if not self.likelihood.has_scale and not self.archetypes.acyclic:
            raise DataError("likelihood: found BinarySEM with factor networks; wanted networks that are DAGs of genes")
        if not self.likelihood.has_scale and getattr(self.acyclicity, "cyclic_likelihood", False):
            raise DataError("cyclic_likelihood: found BinarySEM, which has no residuals; wanted additive noise")
        if self.form == "relaxed" and self.has_logits:
            raise DataError("mixture_scale: found one in the relaxed form, a point estimate; wanted another order")

    @classmethod
    def for_data(
        cls, data: xr.Dataset, num_archetypes: int = 4, *, encoder: str | Encoder = "gp", **options: Any
    ) -> NOTMAD:
        """Make a model of the right sizes for `data`.

        Parameters
        ----------
        data
            Dataset with ``expression (cell, gene)`` and ``covariates (cell, covariate)``.
        num_archetypes
            K.
        encoder
            ``"gp"`` (default), ``"gp_joint"`` (interactions), ``"nam"`` (the paper's), ``"linear"``, or an `Encoder`.
        **options
            Passed to `NOTMAD`. `noise` is ``"free"`` unless the Dataset is on one common scale for all genes.

        Raises
        ------
        DataError
            If a variable is missing or the encoder is unknown.
        """
        return for_data(cls, data, num_archetypes, encoder, options)

    @property
    def schema(self) -> Schema:
        """Inputs of the model and dims of its sites."""
        return schema_of(self)

    def forward(
        self, covariates: Float[Tensor, "cell covariate"], expression: Float[Tensor, "cell gene"] | None = None
    ) -> Float[Tensor, "*draw cell gene"]:
        """Generate, or score, the expression of all cells."""
        n, p, K = covariates.shape[-2], self.num_genes, self.num_archetypes
        order = self.sample_order()  # (rank,)
        edges = self.archetypes.weights(K, p, self.edge_prior, ordered=order is not None)
        W = self.archetypes.build(edges, p, order)  # (archetype, regulator, target)
        if isinstance(self.acyclicity, OrderMask) and self.form == "relaxed":
            W = self.acyclicity(W, self.acyclicity.scores(p))
        W = pyro.deterministic("archetypes", W, event_dim=3)
        b = pyro.sample("intercepts", self.intercept_prior.expand((K, p)))  # (archetype, gene)
        sigma = self.sample_scale(like=b)  # (gene,) or (1,)
        own = self.likelihood.parameters_drawn()
        theta = self.encoder.weights(K)
        tau_z = self.sample_mixture_scale()
        with pyro.plate("cell", n, dim=-1) as rows:
            C_i = pyro.subsample(covariates, event_dim=1)
            X_i = None if expression is None else pyro.subsample(expression, event_dim=1)
            eta_i = self.encoder(C_i, theta)  # (cell, archetype)
            if tau_z is not None:
                eta_i = pyro.sample("logits", dist.Normal(eta_i, tau_z).to_event(1))
            Z_i = MIXING[self.mixing](eta_i)
            equations = self.equations(Z_i, W, b, sigma, own, rows)
            X_i = pyro.sample("expression", equations, obs=X_i)  # (cell, gene)
        if isinstance(self.acyclicity, AcyclicityFactor) and self.form == "relaxed":
            self.acyclicity(
                n,
                self.archetypes.sorted_part(edges, W),
                lambda rows: self.equations(
                    MIXING[self.mixing](self.encoder(covariates[rows], theta)), W, b, sigma, own
                ),
            )
        return X_i

    def sample_order(self) -> Int[Tensor, "*draw rank"] | None:
        """The order of the genes (of the factors, for factor networks): drawn, given, or none."""
        if self.form != "exact":
            return None
        if self.fixed_order is not None:
            return self.fixed_order
        return pyro.sample(
            "order", UniformOrder(self.archetypes.num_nodes(self.num_genes), self.encoder.location.device)
        )

    def sample_scale(self, like: Tensor) -> Float[Tensor, "*draw gene"]:
        """Noise scales, one for all genes with a singleton axis; ones where the likelihood has none."""
        if not self.likelihood.has_scale:
            return like.new_ones(1)
        sigma = pyro.sample("sigma", self.noise_prior.expand(() if self.noise == "equal" else (self.num_genes,)))
        return sigma.unsqueeze(-1) if self.noise == "equal" else sigma

    def sample_mixture_scale(self) -> Float[Tensor, "*draw 1"] | None:
        """tau_z: drawn, given, or none."""
        if self.mixture_prior is not None:
            return pyro.sample("mixture_scale", self.mixture_prior.expand(())).unsqueeze(-1)
        return None if self.mixture_scale is None else self.mixture_scale.unsqueeze(-1)

    @property
    def has_logits(self) -> bool:
        """Whether cells have logits of their own (tau_z > 0)."""
        return self.mixture_prior is not None or self.mixture_scale is not None

    def equations(
        self,
        Z: Float[Tensor, "*draw cell archetype"],
        W: Float[Tensor, "*draw archetype regulator target"],
        b: Float[Tensor, "*draw archetype gene"],
        sigma: Float[Tensor, "*draw gene"],
        own: Mapping[str, Tensor],
        rows: Int[Tensor, " row"] | None = None,
    ) -> MixtureSEM:
        """The structural equations of cells with archetype weights Z."""
        projected = self.form == "projected"
        kept = self.kept if rows is None or self.kept is None else self.kept[..., rows, :, :]
        return MixtureSEM(
            Z, W, b, sigma, self.likelihood, own,
            projected=projected, kept=kept if projected else None,
            determinant=not self.archetypes.acyclic,
        )  # fmt: skip

    kept: Bool[Tensor, "*draw cell regulator target"] | None = None
    """Edges that the projection keeps in the cells that are fitted, where a routine holds them fixed; else None."""

    def archetypes_of(self, values: Mapping[str, Tensor]) -> Float[Tensor, "draw archetype regulator target"]:
        """W_k from draws of the sites, whatever form and archetypes the model has."""
        flat = flat_values(self, values)
        order = flat.get("order", self.fixed_order) if self.form == "exact" else None
        W = self.archetypes.build(flat, self.num_genes, order)
        return (
            self.acyclicity(W, flat["order_scores"])
            if isinstance(self.acyclicity, OrderMask) and "order_scores" in flat
            else W
        )

    def mixture_of(
        self, covariates: Float[Tensor, "cell covariate"], values: Mapping[str, Tensor]
    ) -> Float[Tensor, "draw cell archetype"]:
        """Z of new cells from draws of the sites and covariates alone; where there is a tau_z, drawn around f(C)."""
        flat = flat_values(self, values)
        theta = {name: value.unsqueeze(1) for name, value in flat.items() if name.startswith("encoder")}
        eta = self.encoder(covariates, theta)
        if self.has_logits:
            tau_z = flat["mixture_scale"] if self.mixture_scale is None else self.mixture_scale
            eta = eta + tau_z.reshape(-1, 1, 1) * torch.randn_like(eta)
        return MIXING[self.mixing](eta)

    def networks_of(
        self, covariates: Float[Tensor, "cell covariate"], values: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "draw cell regulator target"], Float[Tensor, "draw cell gene"]]:
        """W_i and b_i of any cells from draws of the sites and covariates alone."""
        Z, b = self.mixture_of(covariates, values), flat_values(self, values)["intercepts"]
        sem = self.equations(Z, self.archetypes_of(values).unsqueeze(1), b.unsqueeze(1), b.new_ones(1), {})
        return sem.networks(), sem.intercepts()

    def settings(self) -> dict[str, Any] | None:
        """JSON description for saving, None when a part has no name that a file may carry."""
        return described_parts(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> NOTMAD:
        """Rebuild from `settings`; the buffers are filled by the saved state."""
        return parts_from(cls, settings)
