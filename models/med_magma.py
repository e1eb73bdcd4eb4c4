"""MED-MAGMA: graphs of cells and of genes at once, under unknown scales of every cell and every gene.

"Making Multi-Axis Models Robust to Multiplicative Noise: How, and Why?" (MED-MAGMA), as a generative model: a matrix
whose entries depend along both axes is seen after every row and column was stretched by an unknown positive factor
(capture efficiency, size of the cell, amplification of the gene):

| symbol | name | shape | meaning |
|---|---|---|---|
| Psi_1 | ``cell_edges`` | (cell, cell_other) | precision factor of the cells; its off-diagonals are edges |
| Psi_2 | ``gene_edges`` | (gene, gene_other) | precision factor of the genes |
| omega | ``log_omega`` | () | overall precision |
| log u | ``log_u`` | (cell,) | log scale of each cell, sum zero |
| log v | ``log_v`` | (gene,) | log scale of each gene, sum zero |
| tau | ``tau_u``, ``tau_v`` | () | spread of the log scales, unless they are flat |
| D | ``expression`` | (cell, gene) | what is seen |

    Psi_1, Psi_2 ~ graph priors,   log u, log v ~ scale priors,   omega ~ flat in its log
    vec(X) ~ Normal(0, Omega^-1),   Omega = omega (Psi_1 (+) Psi_2)      (Kronecker sum: Psi_1 (x) I + I (x) Psi_2)
    D = (u v^T) o X

Conventions that make the rest identifiable: log u and log v sum to zero, so the overall scale lives in omega; Psi_1 and
Psi_2 have the same mean diagonal (a multiple of the identity can move from one to the other). Partial correlations are
those of Omega: rho_ik = -Psi_1[i, k] / sqrt((Psi_1[i, i] + d)(Psi_1[k, k] + d)), d the mean diagonal of Psi_2.

Several matrices of the same cells and genes (replicates, panels, time points) share both graphs; each has scales of its
own unless `shared_scales`. Under flat scales the posterior of the graphs is the same for D and (a b^T) o D.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from .parts.errors import DataError, LoadError, NumericalError, SchemaError
from .parts.graph_priors import GRAPH_PRIORS, FixedGraph, GraphPrior, SparseGraph
from .parts.kronecker_sum import ScaledKroneckerSumNormal
from .parts.priors import Prior, PriorLike
from .parts.scale_priors import SCALE_PRIORS, FlatScales, ScalePrior
from .schema import Input, Schema

if TYPE_CHECKING:
    from jaxtyping import Float

Structure = Literal["sum", "independent_cells", "independent_genes", "product"]
Zeros = Literal["gaussian", "structural"]
MAX_TRIES = 200


class MEDMAGMA(torch.nn.Module):
    """Graphs of cells and genes under unknown scales of both; the process is written out at the top of this module.

    Parameters
    ----------
    num_cells, num_genes
        n and p.
    num_replicates
        m, the number of matrices; None: one matrix without an axis of replicates.
    cell_graph, gene_graph
        Priors of the graphs: `SparseGraph` (default), `GaussianGraph`, `LaplaceGraph`, `SpectralGraph`, `FixedGraph`.
    cell_scales, gene_scales
        Priors of the log scales: `FlatScales` (default), `NormalScales`, `StudentScales`.
    overall_prior
        Prior of log omega, a distribution of scalars; None: flat.
    shared_scales
        Whether all matrices have the same u, v and omega. Wrong where they have not: graphs are then lost in noise.
    zeros
        What an entry of exactly zero is: ``"gaussian"``, an observation like any other (the paper's convention), or
        ``"structural"``, an entry that says nothing about scales, such as drop-out (a pseudo-likelihood).
    structure
        ``"sum"``; ``"independent_cells"`` or ``"independent_genes"`` (one graph only); ``"product"``: matrix normal,
        whose graph is the strong product (for simulation, `svi` and `mcmc`; the EM guide does not serve it).

    Raises
    ------
    DataError
        If a size or an option is not usable.
    """

    unit: Tensor

    def __init__(
        self,
        num_cells: int,
        num_genes: int,
        num_replicates: int | None = None,
        *,
        cell_graph: GraphPrior | None = None,
        gene_graph: GraphPrior | None = None,
        cell_scales: ScalePrior | None = None,
        gene_scales: ScalePrior | None = None,
        overall_prior: PriorLike | None = None,
        shared_scales: bool = False,
        zeros: Zeros = "gaussian",
        structure: Structure = "sum",
    ) -> None:
        super().__init__()
        for name, size, least in (("num_cells", num_cells, 2), ("num_genes", num_genes, 2)):
            if not isinstance(size, int) or size < least:
                raise DataError(f"{name}: found {size!r}; wanted a whole number of at least {least}")
        if num_replicates is not None and (not isinstance(num_replicates, int) or num_replicates < 1):
            raise DataError(f"num_replicates: found {num_replicates!r}; wanted a positive whole number or None")
        _check_option("zeros", zeros, ("gaussian", "structural"))
        _check_option("structure", structure, ("sum", "independent_cells", "independent_genes", "product"))
        self.num_cells, self.num_genes, self.num_replicates = num_cells, num_genes, num_replicates
        self.shared_scales, self.zeros, self.structure = shared_scales, zeros, structure
        self.default_graphs = cell_graph is None and gene_graph is None
        self.cell_graph = self._graph("cell", cell_graph, num_cells, structure == "independent_cells")
        self.gene_graph = self._graph("gene", gene_graph, num_genes, structure == "independent_genes")
        for name, scales in (("cell_scales", cell_scales), ("gene_scales", gene_scales)):
            if scales is not None and not isinstance(scales, ScalePrior):
                raise DataError(f"{name}: found {type(scales).__name__}; wanted a scale prior such as NormalScales()")
        self.cell_scales, self.gene_scales = cell_scales or FlatScales(), gene_scales or FlatScales()
        self.overall_prior = None if overall_prior is None else Prior(overall_prior)
        if self.overall_prior is not None:
            self.overall_prior.check("overall_prior", ())
        self.register_buffer("unit", torch.tensor(1.0, dtype=torch.double), persistent=False)

    @staticmethod
    def _graph(axis: str, graph: GraphPrior | None, size: int, independent: bool) -> GraphPrior:
        if independent and graph is not None:
            raise DataError(f"{axis}_graph: found one together with independent {axis}s; wanted only one of the two")
        if graph is not None and not isinstance(graph, GraphPrior):
            raise DataError(f"{axis}_graph: found {type(graph).__name__}; wanted a graph prior such as SparseGraph()")
        degree = min(2.0, 0.4 * (size - 1))  # two neighbours are all that three nodes can have
        made = FixedGraph(size) if independent else graph or SparseGraph(expected_degree=degree)
        if made.names:
            raise DataError(
                f"{axis}_graph: found {min(made.names)} with names; wanted MEDMAGMA.for_data, which orders it"
            )
        made.check(axis, size)
        return made

    @classmethod
    def for_data(cls, data: xr.Dataset, **options: Any) -> MEDMAGMA:
        """Make a model of the right sizes for `data`.

        Parameters
        ----------
        data
            Dataset with ``expression (cell, gene)`` or ``expression (replicate, cell, gene)``.
        **options
            Passed to `MEDMAGMA`.

        Raises
        ------
        DataError
            If ``expression`` is missing or has other dims.
        """
        if not isinstance(data, xr.Dataset) or "expression" not in data:
            found = sorted(map(str, data.data_vars)) if isinstance(data, xr.Dataset) else type(data).__name__
            raise DataError(f"data: found {found}; wanted a Dataset with 'expression' (from_dataframes, from_anndata)")
        dims = tuple(data["expression"].dims)
        if dims not in (("cell", "gene"), ("replicate", "cell", "gene")):
            raise DataError(f"expression: found dims {dims}; wanted (cell, gene) or (replicate, cell, gene)")
        for axis in ("cell", "gene"):
            graph = options.get(f"{axis}_graph")
            if isinstance(graph, GraphPrior) and graph.names:
                if axis not in data.coords:
                    raise DataError(f"{axis}_graph: found {min(graph.names)} with names; wanted data with names too")
                options[f"{axis}_graph"] = graph.in_order([str(label) for label in data[axis].values])
        return cls(data.sizes["cell"], data.sizes["gene"], data.sizes.get("replicate"), **options)

    @property
    def proper(self) -> bool:
        """Whether every prior can be sampled."""
        graphs = self.cell_graph.proper and self.gene_graph.proper
        flat = isinstance(self.cell_scales, FlatScales) or isinstance(self.gene_scales, FlatScales)
        return graphs and not flat and self.overall_prior is not None

    @property
    def schema(self) -> Schema:
        """Inputs of the model and dims of its sites."""
        single = self.num_replicates is None
        return Schema(
            inputs={"expression": Input(("cell", "gene") if single else ("replicate", "cell", "gene"), observed=True)},
            normalised=self.proper,
            site_dims={
                **self.cell_graph.site_dims("cell"),
                **self.gene_graph.site_dims("gene"),
                "log_u": ("cell",),
                "log_v": ("gene",),
                "stretch_u": ("cell",),
                "stretch_v": ("gene",),
                "log_omega": (),
                "tau_u": (),
                "tau_v": (),
                "expression": ("cell", "gene"),
            },
            plate="replicate",
            labels={"cell_other": "cell", "gene_other": "gene"},
        )

    def forward(
        self, expression: Float[Tensor, "*replicate cell gene"] | None = None
    ) -> Float[Tensor, "*draw cell gene"]:
        """Generate, or score, all matrices."""
        n, p = self.num_cells, self.num_genes
        Psi_1 = self.cell_graph.sample("cell", n)  # (cell, cell_other)
        Psi_2 = self.gene_graph.sample("gene", p)  # (gene, gene_other)
        tau_u, tau_v = self.cell_scales.sample_spread("u"), self.gene_scales.sample_spread("v")
        replicates = self.replicates()
        with nullcontext() if self.shared_scales else replicates:
            log_omega = self.sample_overall()  # ()
            log_u = pyro.sample("log_u", self.cell_scales.law("u", n, tau_u))  # (cell,)
            log_v = pyro.sample("log_v", self.gene_scales.law("v", p, tau_v))  # (gene,)
        with replicates:
            # omega (Psi_1 (+) Psi_2) is the same law as Psi_1 (+) Psi_2 with u / sqrt(omega), without a copy a matrix
            row_scale = log_u - 0.5 * log_omega.unsqueeze(-1)
            law = ScaledKroneckerSumNormal(
                row_scale, log_v, Psi_1, Psi_2, structure=self.omega_structure, zeros=self.zeros
            )
            return pyro.sample("expression", law, obs=expression)  # (cell, gene)

    def replicates(self) -> AbstractContextManager[Any]:
        """The plate of matrices; nothing when there is one."""
        if self.num_replicates is None:
            return nullcontext()
        return pyro.plate("replicate", self.num_replicates, dim=-1)

    @property
    def omega_structure(self) -> Literal["sum", "product"]:
        """How the two factors combine; an independent axis is a sum with an identity."""
        return "product" if self.structure == "product" else "sum"

    def sample_overall(self) -> Float[Tensor, "*draw"]:
        """Draw log omega."""
        if self.overall_prior is None:
            return pyro.sample("log_omega", dist.ImproperUniform(constraints.real, (), ()))
        return pyro.sample("log_omega", self.overall_prior.expand(()))

    def with_graphs(self, cell_graph: GraphPrior, gene_graph: GraphPrior) -> MEDMAGMA:
        """The same model with other priors of the graphs."""
        made = MEDMAGMA(
            self.num_cells, self.num_genes, self.num_replicates, cell_graph=cell_graph, gene_graph=gene_graph,
            cell_scales=self.cell_scales, gene_scales=self.gene_scales, shared_scales=self.shared_scales,
            zeros=self.zeros, structure=self.omega_structure,
        )  # fmt: skip
        made.overall_prior = self.overall_prior
        return made

    def given(self, Psi_1: Float[Tensor, "cell cell_other"], Psi_2: Float[Tensor, "gene gene_other"]) -> MEDMAGMA:
        """The same model with known graphs; scales, their spreads and omega are what is left to learn."""
        return self.with_graphs(FixedGraph(Psi_1), FixedGraph(Psi_2))

    def simulate(self, *, seed: int = 0) -> xr.Dataset:
        """Draw graphs, scales and matrices from the prior.

        Graph priors put weights on pairs one by one; draws for which Omega is not positive definite are drawn again, so
        the law is the prior given that Omega is a precision.

        Returns
        -------
        xr.Dataset
            ``expression`` and, as variables of their own, ``true_cell_precision``, ``true_gene_precision``,
            ``true_log_u`` and ``true_log_v``. Sparse graphs have a small weight in every pair: ``true_cell_edge`` and
            ``true_gene_edge`` tell the pairs that are linked (`GraphPrior.linked`).

        Raises
        ------
        SchemaError
            If a prior is improper.
        NumericalError
            If no draw is positive definite.
        """
        if not self.proper:
            raise SchemaError(
                "simulate: found a flat prior; wanted proper ones: NormalScales() for cells and genes, overall_prior, "
                "and graphs other than SpectralGraph"
            )
        with torch.random.fork_rng(), pyro.validation_enabled(False), torch.no_grad():
            torch.manual_seed(seed)
            for _ in range(MAX_TRIES):
                with poutine.block(), suppress(NumericalError):
                    trace = poutine.trace(self).get_trace()
                    return self._truth(trace)
        raise NumericalError(
            f"simulate: no positive definite Omega in {MAX_TRIES} draws; wanted smaller or fewer edges"
        )

    def simulate_like(self, data: xr.Dataset, *, seed: int = 0) -> xr.Dataset:
        """`simulate`; the model knows all shapes itself."""
        return self.simulate(seed=seed)

    def _truth(self, trace: Any) -> xr.Dataset:
        law = trace.nodes["expression"]["fn"].unscaled
        graphs = {"cell": (self.cell_graph, law.row_precision), "gene": (self.gene_graph, law.col_precision)}
        dims = self.schema.inputs["expression"].dims
        scale_dims = () if self.shared_scales else dims[:-2]

        def array(name: str) -> Any:
            return trace.nodes[name]["value"].numpy()

        return xr.Dataset(
            {
                "expression": (dims, array("expression")),
                **{
                    f"true_{axis}_precision": ((axis, f"{axis}_other"), Psi.numpy())
                    for axis, (_, Psi) in graphs.items()
                },
                **{
                    f"true_{axis}_edge": ((axis, f"{axis}_other"), graph.linked(Psi).numpy())
                    for axis, (graph, Psi) in graphs.items()
                },
                "true_log_u": ((*scale_dims, "cell"), array("log_u")),
                "true_log_v": ((*scale_dims, "gene"), array("log_v")),
                "true_log_omega": (scale_dims, array("log_omega")),
            }
        )

    def settings(self) -> dict[str, Any] | None:
        """JSON description for saving, None when a prior has no name that a file may carry."""
        scales = {"cell_scales": self.cell_scales.settings(), "gene_scales": self.gene_scales.settings()}
        overall = None if self.overall_prior is None else self.overall_prior.settings()
        if None in scales.values() or (overall is None) != (self.overall_prior is None):
            return None
        sizes = {key: getattr(self, key) for key in ("num_cells", "num_genes", "num_replicates")}
        options = {key: getattr(self, key) for key in ("shared_scales", "zeros", "structure")}
        graphs = {"cell_graph": self.cell_graph.settings(), "gene_graph": self.gene_graph.settings()}
        return {**sizes, **options, **graphs, **scales, "overall_prior": overall}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> MEDMAGMA:
        """Rebuild from `settings`.

        Raises
        ------
        LoadError
            If a part is not one of the library's.
        """
        options = dict(settings)
        for axis in ("cell", "gene"):
            graph, scales = options[f"{axis}_graph"], options[f"{axis}_scales"]
            options[f"{axis}_graph"] = _listed(GRAPH_PRIORS, graph).from_settings(graph)
            options[f"{axis}_scales"] = _listed(SCALE_PRIORS, scales).from_settings(scales)
            if options["structure"] == f"independent_{axis}s":
                options[f"{axis}_graph"] = None
        overall = options.pop("overall_prior")
        made = cls(**options)
        made.overall_prior = None if overall is None else Prior.from_settings(overall)
        return made


def _listed(known: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    if settings.get("kind") not in known:
        raise LoadError(f"prior: found {settings.get('kind')!r}; wanted one of {sorted(known)}")
    return known[settings["kind"]]


def _check_option(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise DataError(f"{name}: found {value!r}; wanted one of {known}")
