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
| sigma | ``sigma`` | () or (gene,) | noise standard deviation, one for all genes or one a gene |
| theta | ``encoder_*`` | | weights of the covariate encoder f_theta |
| Z_i | | (cell, archetype) | softmax f_theta(C_i), weights of the archetypes in a cell |

    pi ~ uniform over orders,   w_ke ~ edge prior,   b_kj ~ Normal(0, 1),   sigma ~ LogNormal(0, 0.5)
    Z_i = softmax f_theta(C_i),   W_i = sum_k Z_ik W_k,   b_i = sum_k Z_ik b_k
    X_i = b_i + X_i W_i + e_i,   e_ij ~ Normal(0, sigma_j^2)

A mixture of DAGs that share an order is a DAG for every Z; DAGs with different orders mix to cyclic networks, because a
softmax is never exactly zero. Hence the two forms of the model, chosen by `order`:

* **exact** (``"uniform"`` or a given order): every network is acyclic by construction. Prior, simulation and posterior.
* **relaxed** (``None``): all p(p-1) edges are allowed and an acyclicity factor, exp(-weight n h), punishes cycles
  (eq. 3 of the paper). An energy, not a normalised density: for point estimates only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from torch import Tensor

from .parts.acyclicity import ACYCLICITY, union_squared
from .parts.distributions import SpikeSlab, UniformOrder, permutation
from .parts.encoders import ENCODERS, Encoder
from .parts.errors import DataError
from .parts.priors import Prior, PriorLike
from .parts.sem import MixtureSEM
from .schema import Input, Schema

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Noise = Literal["equal", "free"]
Scope = Literal["union", "samples"]


class AcyclicityFactor(torch.nn.Module):
    """The energy weight * n * h that pulls the relaxed form towards acyclic networks.

    Parameters
    ----------
    function
        ``"expm"`` (NOTEARS) or ``"logdet"`` (DAGMA).
    scope
        ``"union"``: h of the union of the archetypes, which bounds h of every cell, seen or not.
        ``"samples"``: mean h over a random subset of cells, as in the paper.
    cyclic_likelihood
        Add log|det(I - W_i)|, which the residual likelihood lacks while networks are cyclic (scope ``"samples"``).
    num_rows
        Size of the random subset.
    """

    weight: Tensor

    def __init__(
        self,
        function: str = "expm",
        scope: Scope = "union",
        *,
        cyclic_likelihood: bool = False,
        weight: float = 1.0,
        num_rows: int = 64,
    ) -> None:
        super().__init__()
        if function not in ACYCLICITY:
            raise DataError(f"acyclicity function: found {function!r}; wanted one of {sorted(ACYCLICITY)}")
        if scope not in ("union", "samples"):
            raise DataError(f"acyclicity scope: found {scope!r}; wanted 'union' or 'samples'")
        if cyclic_likelihood and scope == "union":
            raise DataError(
                "cyclic_likelihood: found scope 'union'; wanted 'samples', whose networks it is evaluated on"
            )
        self.function, self.scope, self.cyclic_likelihood, self.num_rows = function, scope, cyclic_likelihood, num_rows
        self.h = ACYCLICITY[function]()
        self.register_buffer("weight", torch.tensor(float(weight)))

    def settings(self) -> dict[str, Any]:
        """JSON description."""
        keys = ("function", "scope", "cyclic_likelihood", "num_rows")
        return {key: getattr(self, key) for key in keys}


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
    noise
        ``"equal"``: one noise scale for all genes, which identifies directions on a common scale; ``"free"``: one a
        gene, for standardised data.
    order
        ``"uniform"``, an order of gene indices, or None for the relaxed form.
    edge_prior, intercept_prior, noise_prior
        Any Pyro distribution of scalars, or a callable (see `Prior`).
    acyclicity
        The factor of the relaxed form; unused in the exact form.

    Raises
    ------
    DataError
        If a size, an option or the order is not usable.
    """

    def __init__(
        self,
        num_genes: int,
        encoder: Encoder,
        num_archetypes: int = 4,
        *,
        noise: Noise = "equal",
        order: Literal["uniform"] | Sequence[int] | Int[Tensor, " gene"] | None = "uniform",
        edge_prior: PriorLike | None = None,
        intercept_prior: PriorLike | None = None,
        noise_prior: PriorLike | None = None,
        acyclicity: AcyclicityFactor | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("num_genes", num_genes, 2), ("num_archetypes", num_archetypes, 1)):
            if not isinstance(value, int) or value < least:
                raise DataError(f"{name}: found {value!r}; wanted a whole number of at least {least}")
        if noise not in ("equal", "free"):
            raise DataError(f"noise: found {noise!r}; wanted 'equal' or 'free'")
        self.num_genes, self.num_archetypes, self.noise = num_genes, num_archetypes, noise
        self.encoder = encoder
        self.edge_prior = Prior(edge_prior or SpikeSlab(0.3, 0.8, 0.05))
        self.intercept_prior = Prior(intercept_prior or dist.Normal(0.0, 1.0))
        self.noise_prior = Prior(noise_prior or dist.LogNormal(0.0, 0.5))
        self.acyclicity = acyclicity if acyclicity is not None or order is not None else AcyclicityFactor()
        self.form = "relaxed" if order is None else "exact"
        self.register_buffer("fixed_order", None)
        if order is not None and not isinstance(order, str):
            self.fixed_order = torch.as_tensor(order, dtype=torch.long)
            if self.fixed_order.shape != (num_genes,) or not permutation.check(self.fixed_order):
                raise DataError(f"order: found {list(order)}; wanted each of 0..{num_genes - 1} once")
        elif order not in (None, "uniform"):
            raise DataError(f"order: found {order!r}; wanted 'uniform', a list of gene indices, or None")
        self.edge_prior.check("edge_prior", (num_archetypes, self.num_edges))
        self.intercept_prior.check("intercept_prior", (num_archetypes, num_genes))
        self.noise_prior.check("noise_prior", () if noise == "equal" else (num_genes,), positive=True)

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
        if not isinstance(data, xr.Dataset):
            raise DataError(f"data: found {type(data).__name__}; wanted a Dataset, as from_dataframes makes it")
        for name in ("expression", "covariates"):
            if name not in data:
                raise DataError(
                    f"{name}: found variables {sorted(map(str, data.data_vars))}; wanted {name!r} among them"
                )
        if isinstance(encoder, str):
            if encoder not in ENCODERS:
                raise DataError(f"encoder: found {encoder!r}; wanted one of {sorted(ENCODERS)}")
            encoder = ENCODERS[encoder](torch.as_tensor(data["covariates"].values))
        options.setdefault("noise", "free" if data.attrs.get("standardized") == "gene" else "equal")
        model = cls(data.sizes["gene"], encoder, num_archetypes, **options)
        return model.to(torch.as_tensor(data["expression"].values[:1]).dtype)

    @property
    def num_edges(self) -> int:
        """Allowed edges of an archetype: p(p-1)/2 given an order, p(p-1) without."""
        all_edges = self.num_genes * (self.num_genes - 1)
        return all_edges if self.form == "relaxed" else all_edges // 2

    @property
    def schema(self) -> Schema:
        """Inputs of the model and dims of its sites."""
        return Schema(
            inputs={
                "covariates": Input(("cell", "covariate")),
                "expression": Input(("cell", "gene"), observed=True),
            },
            normalised=self.form == "exact",
            site_dims={
                "order": ("rank",),
                "edges": ("archetype", "edge"),
                "archetypes": ("archetype", "regulator", "target"),
                "intercepts": ("archetype", "gene"),
                "sigma": ("gene",) if self.noise == "free" else (),
                "encoder_weights": ("feature", "archetype"),
                "encoder_bias": ("archetype",),
                "encoder_log_amplitude": (),
                "encoder_hidden_1": ("covariate", "hidden_input", "hidden"),
                "encoder_hidden_2": ("covariate", "hidden_with_offset", "hidden"),
                "expression": ("gene",),
            },
            labels={"regulator": "gene", "target": "gene"},
            coords={"feature": [f"{j} {label}" for j, label in self.encoder.feature_names]},
        )

    def forward(
        self, covariates: Float[Tensor, "cell covariate"], expression: Float[Tensor, "cell gene"] | None = None
    ) -> Float[Tensor, "*draw cell gene"]:
        """Generate, or score, the expression of all cells."""
        n, p, K = covariates.shape[-2], self.num_genes, self.num_archetypes
        order = self.sample_order()  # (rank,)
        edges = pyro.sample("edges", self.edge_prior.expand((K, self.num_edges)))
        W = pyro.deterministic("archetypes", self.place(edges, order), event_dim=3)  # (archetype, regulator, target)
        b = pyro.sample("intercepts", self.intercept_prior.expand((K, p)))
        sigma = pyro.sample("sigma", self.noise_prior.expand(() if self.noise == "equal" else (p,)))
        theta = self.encoder.weights(K)
        with pyro.plate("cell", n, dim=-1):
            C_i = pyro.subsample(covariates, event_dim=1)
            X_i = None if expression is None else pyro.subsample(expression, event_dim=1)
            Z_i = self.encoder(C_i, theta).softmax(-1)  # (cell, archetype)
            noise = sigma.unsqueeze(-1) if self.noise == "equal" else sigma
            X_i = pyro.sample("expression", MixtureSEM(Z_i, W, b, noise), obs=X_i)  # (cell, gene)
        if self.acyclicity is not None and self.form == "relaxed":
            self.punish_cycles(self.acyclicity, covariates, theta, W, b, noise)
        return X_i

    def sample_order(self) -> Int[Tensor, "*draw rank"] | None:
        """The order: drawn, given, or none in the relaxed form."""
        if self.form == "relaxed":
            return None
        if self.fixed_order is not None:
            return self.fixed_order
        return pyro.sample("order", UniformOrder(self.num_genes, self.encoder.location.device))

    def place(
        self, edges: Float[Tensor, "*draw archetype edge"], order: Int[Tensor, "*draw rank"] | None
    ) -> Float[Tensor, "*draw archetype regulator target"]:
        """Put the effects of allowed edges into p x p matrices; everything else is exactly zero."""
        p = self.num_genes
        if order is None:
            regulator, target = (~torch.eye(p, dtype=torch.bool, device=edges.device)).nonzero().unbind(-1)
        else:
            regulator, target = torch.triu_indices(p, p, 1, device=edges.device)
        matrix = edges.new_zeros(*edges.shape[:-1], p * p).index_copy(-1, regulator * p + target, edges)
        matrix = matrix.unflatten(-1, (p, p))
        if order is None:
            return matrix
        rank = order.argsort(-1)  # rank[j]: place of gene j
        flat = (rank.unsqueeze(-1) * p + rank.unsqueeze(-2)).flatten(-2).unsqueeze(-2)
        shape = (*torch.broadcast_shapes(flat.shape[:-1], matrix.shape[:-2]), p * p)
        return matrix.flatten(-2).expand(shape).gather(-1, flat.expand(shape)).unflatten(-1, (p, p))

    def punish_cycles(
        self,
        factor: AcyclicityFactor,
        covariates: Float[Tensor, "cell covariate"],
        theta: dict[str, Tensor],
        W: Float[Tensor, "*draw archetype regulator target"],
        b: Float[Tensor, "*draw archetype gene"],
        noise: Float[Tensor, "*draw gene"],
    ) -> None:
        """Add the acyclicity factor of the relaxed form (eq. 3 of the paper; fact 4c of its bound for the union)."""
        n = covariates.shape[-2]
        if factor.scope == "union":
            pyro.factor("acyclicity", -n * factor.weight * factor.h.of_squared(union_squared(W)))
            return
        with pyro.plate("acyclicity_cell", n, subsample_size=min(factor.num_rows, n), dim=-1) as rows:
            Z_i = self.encoder(covariates[rows], theta).softmax(-1)
            sem = MixtureSEM(Z_i, W, b, noise)
            pyro.factor("acyclicity", -factor.weight * factor.h(sem.networks()))
            if factor.cyclic_likelihood:
                pyro.factor("log_abs_det", sem.log_abs_det())

    def settings(self) -> dict[str, Any] | None:
        """JSON description for saving, None when a prior has no name that a file may carry."""
        priors = {key: getattr(self, key).settings() for key in ("edge_prior", "intercept_prior", "noise_prior")}
        encoder = self.encoder.settings()
        if encoder is None or None in priors.values():
            return None
        order = None if self.form == "relaxed" else "uniform"
        return {
            "num_genes": self.num_genes,
            "num_archetypes": self.num_archetypes,
            "noise": self.noise,
            "order": order if self.fixed_order is None else self.fixed_order.tolist(),
            "priors": priors,
            "encoder": encoder,
            "acyclicity": None if self.acyclicity is None else self.acyclicity.settings(),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> NOTMAD:
        """Rebuild from `settings`; the buffers are filled by the saved state."""
        acyclicity = settings["acyclicity"] and AcyclicityFactor(**settings["acyclicity"])
        model = cls(
            settings["num_genes"],
            Encoder.from_settings(settings["encoder"]),
            settings["num_archetypes"],
            noise=settings["noise"],
            order=settings["order"],
            acyclicity=acyclicity,
        )
        for key, prior in settings["priors"].items():
            setattr(model, key, Prior.from_settings(prior))
        return model
