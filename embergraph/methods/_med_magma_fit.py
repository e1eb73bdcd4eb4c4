"""A fitted MED-MAGMA: what it tells of graphs, scales and itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
import xarray as xr
from torch import Tensor

from ..guides.med_magma import MEDMAGMAGuide
from ..guides.parts.edge_score import ScoreKind
from ..guides.parts.graph_updates import sample_into
from ..inference import Fit, register
from ..inference.entries import leave_one_out_entries
from ..inference.figures import Picture
from ..inference.inputs import DataLike, as_dataset, to_inputs
from ..inference.messengers import isolated
from ..inference.options import check_counts
from ..inference.readings import check_level
from ..inference.replicated import Replicated
from ..models.med_magma import MEDMAGMA
from ..models.parts.errors import SchemaError
from ..models.parts.graph_priors import FixedGraph, SparseGraph
from . import _med_magma_graphs as read
from ._med_magma_figures import graph_figures
from ._med_magma_readings import graph_readings
from ._med_magma_report import graph_report


class MEDMAGMAFit(Fit):
    """A fitted MED-MAGMA: a `Fit` that also tells graphs and scales."""

    model: MEDMAGMA
    guide: MEDMAGMAGuide

    def graphs(self, *, threshold: float = 0.05, interval: float = 0.9, score: ScoreKind = "auto") -> xr.Dataset:
        """Graphs of cells and genes.

        Parameters
        ----------
        threshold
            Size of partial correlation that counts as an edge.
        interval
            Probability of the intervals.
        score
            What pairs are ranked by, see `edge_scores`.

        Returns
        -------
        xr.Dataset
            For ``cell`` and ``gene``, over ``(cell, cell_other)`` and ``(gene, gene_other)``:
            ``_partial_correlation`` (posterior mean) with ``_lower`` and ``_upper``, ``_edge_probability`` (that the
            partial correlation is above the threshold in size), ``_score`` (for ranking pairs) and ``_precision``
            (point estimate of Psi). Probabilities above .95 can be read as such; lower ones are a ranking.

        Raises
        ------
        DataError
            If an option is out of range.
        """
        return read.graphs(self, threshold=threshold, interval=interval, score=score)

    def scales(self, *, interval: float = 0.9) -> xr.Dataset:
        """Log scales of cells (``log_u``) and genes (``log_v``) with ``_sd``, ``_lower`` and ``_upper``.

        Each sums to zero; exp(log_u_i + log_v_j) is how much larger the entry is than it would be without scales.
        """
        return read.scales(self, interval)

    def strongest(self, axis: Literal["cell", "gene"] = "gene", num_edges: int = 20, **options: Any) -> xr.Dataset:
        """The pairs with the highest score, with names, partial correlations, intervals and probabilities.

        Parameters
        ----------
        axis
            Which graph.
        num_edges
            How many pairs.
        **options
            Options of `graphs`.
        """
        return read.strongest(self.graphs(**options), axis, num_edges)

    def posterior(
        self,
        data: DataLike,
        num_samples: int = 1000,
        *,
        predictive: bool = False,
        prior: bool = False,
        seed: int = 0,
        num_edges: int = 50,
    ) -> xr.DataTree:
        """Posterior draws for ArviZ: scales given the graphs, and the strongest edges of both axes.

        Scales are drawn given the graphs of edges that are as good as certain. Draws of single edges come from their
        own spike and slab, each by itself: ``cell_partial_correlation (cell_edge)`` and ``gene_partial_correlation
        (gene_edge)``. Group ``graphs`` holds what `graphs` returns.

        Parameters
        ----------
        data
            The data that were fitted.
        num_samples
            Draws.
        predictive, prior
            Whether to add predictive draws (as large as the data, for each draw), and prior draws where priors are
            proper.
        seed
            Seed of the draws.
        num_edges
            Pairs of each axis whose draws are kept.
        """
        given = self._given_graphs()
        tree = Fit.posterior(given, data, num_samples, predictive=predictive, prior=prior, seed=seed)
        return read.with_edges(self, tree, num_samples, num_edges, seed)

    def log_density(self, data: DataLike, num_samples: int = 500, *, seed: int = 0) -> xr.DataArray:
        """Log density of other matrices of the same cells and genes, their scales integrated out, in nats.

        Scales of a new matrix are new: the integral over them is Laplace's. With flat scales only differences between
        fits to the same matrices mean anything.

        Returns
        -------
        xr.DataArray
            One value a matrix (dim ``replicate``; none for a single matrix).
        """
        return read.log_density(self, data)

    def entry_log_density(self, data: DataLike, num_samples: int = 200, *, seed: int = 0) -> xr.Dataset:
        """Log density of every entry of the fitted matrices given all their other entries, in nats.

        Not of held-out data, and attribute ``held_out`` is 0: graphs and scales have seen every entry. Scales are
        averaged over by leave-one-out weights, graphs are as fitted; see `Fit.entry_log_density` for what is returned.
        """
        return leave_one_out_entries(self._given_graphs(), data, num_samples, seed=seed)

    def predict(self, data: DataLike, num_samples: int = 200, *, seed: int = 0) -> xr.Dataset:
        """Draw matrices given the graphs and the posterior of the scales.

        Raises
        ------
        SchemaError
            If there are replicates under flat scales: a new matrix has scales of its own, of which nothing is known.
        """
        if self.model.num_replicates is not None and not self.model.shared_scales and not self.model.proper:
            raise SchemaError("predict: found flat scales of new matrices; wanted NormalScales() and an overall_prior")
        return Fit.predict(self._given_graphs(), data, num_samples, seed=seed)

    def replicated(self, data: DataLike, num_samples: int = 200, **options: Any) -> Replicated:
        """Draw matrices anew; see `Fit.replicated`. Posterior draws are of scales, given the graphs of the fit."""
        fit = self if options.get("kind") == "prior" else self._given_graphs()
        return Fit.replicated(fit, data, num_samples, **options)

    def resume(self, data: DataLike, num_steps: int, *, progress: bool = True, options: Any = None) -> Self:
        """Go on with the sweeps, then compute the posterior of the scales again; see `Fit.resume`."""
        fit = super().resume(data, num_steps, progress=progress, options=options)
        refined(fit, to_inputs(self.schema, as_dataset(data, self.schema), device=self.device))
        return fit

    def __repr__(self) -> str:
        settled = "" if self.settings.get("converged", True) else ", not settled"
        return super().__repr__()[:-1] + settled + ")"

    def report(self, data: DataLike, test: DataLike | None = None, *, num_samples: int = 500) -> xr.Dataset:
        """Table of what can be known about the quality of the fit; `as_text` prints it."""
        return graph_report(self, data, test, num_samples=num_samples)

    def readings(
        self, data: DataLike, *, num_samples: int = 200, level: float = 0.9, seed: int = 0
    ) -> dict[str, xr.Dataset]:
        """``log_u``, ``log_v``, ``cell_edge`` and ``gene_edge``, from closed forms; see `Fit.readings`."""
        check_level(level)
        return graph_readings(self, as_dataset(data, self.schema), level=level)

    def figures(self, data: DataLike, *, num_samples: int = 200, seed: int = 0) -> list[Picture]:
        """Graphs of genes and cells, and scales of both; see `Fit.figures`."""
        return graph_figures(self)

    def summary(self) -> dict[str, Any]:
        """What the attributes of a tree say about the fit."""
        return {**super().summary(), **read.conventions(self)}

    def with_sampled_edges(self, num_sweeps: int = 60, *, num_burn_in: int = 20, seed: int = 0) -> MEDMAGMAFit:
        """The fit with edge probabilities and weights sampled exactly instead of estimated; for small problems.

        Metropolis within Gibbs on every pair, about a second a sweep at 100 x 150. Scales are those of the fit, and
        edges are independent a priori (`hubs` and `closure` do not count). Probabilities in the middle, which the fast
        estimate only ranks by, can be read as such. Point estimates of Psi stay.

        Parameters
        ----------
        num_sweeps, num_burn_in
            Sweeps over all pairs that are averaged, and sweeps before them.
        seed
            Seed of the sampler.

        Raises
        ------
        SchemaError
            If an axis has neither spike and slab nor a known graph.
        """
        check_counts(num_sweeps=num_sweeps, num_burn_in=num_burn_in, seed=seed)
        kinds = [type(graph) for graph in (self.model.cell_graph, self.model.gene_graph)]
        if SparseGraph not in kinds or not set(kinds) <= {SparseGraph, FixedGraph}:
            found = " and ".join(kind.__name__ for kind in kinds)
            raise SchemaError(
                f"edges: found {found}; wanted SparseGraph (one may be FixedGraph), whose edges are sampled"
            )
        guide = copy.deepcopy(self.guide)
        sample_into(guide, self.model, num_sweeps=num_sweeps, num_burn_in=num_burn_in, seed=seed)
        settings = {**self.settings, "edges": "sampled", "num_sweeps": num_sweeps}
        return MEDMAGMAFit(
            self.model, guide, self.schema, self.template, history=self._history, settings=settings, store=self.store,
            training=self.training,
        )  # fmt: skip

    def _given_graphs(self) -> MEDMAGMAFit:
        """The fit with known graphs, those that its scales were fitted with: draws of it are draws of scales alone."""
        model = self.model.given(*self.guide.graphs_for_scales())
        return MEDMAGMAFit(
            model, self.guide.given_graphs(), model.schema, self.template, history=self._history,
            settings=self.settings, store=self.store,
        )  # fmt: skip


def refined(fit: MEDMAGMAFit, inputs: Mapping[str, Tensor]) -> MEDMAGMAFit:
    """End a fit with the posterior of the scales given the graphs; Ctrl-C leaves them at the last E-step."""
    try:
        with isolated(int(fit.settings.get("seed", 0)), dtype=torch.double), torch.no_grad():
            fit.guide.refine_scales(fit.model, {name: value.double() for name, value in inputs.items()})
    except KeyboardInterrupt:
        fit.settings["interrupted"] = True
    return fit


register(MEDMAGMAFit)
