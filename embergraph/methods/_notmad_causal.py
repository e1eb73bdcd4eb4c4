"""What interventions on genes would do, by the networks of a fitted NOTMAD."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..inference.messengers import isolated
from ..models.parts.errors import DataError
from ..models.parts.projection import project
from ..validation import listed
from ._notmad_covariates import Covariates, check_interval, check_scale, check_threshold
from ._notmad_networks import Networks, Scale
from ._notmad_stream import Part, Values, as_input, distinct, num_draws_of, pieces, some, whole
from ._notmad_summaries import Summaries, quantiles_of, tails

if TYPE_CHECKING:
    from jaxtyping import Float


class Interventions(Networks):
    """Causal questions to `NOTMADFit`.

    Answers are those of the fitted networks taken as causal: no unmeasured common causes, linear effects, and noise of
    other genes that an intervention leaves alone. Intervals cover what the posterior is unsure of, not these.
    """

    def total_effects(
        self,
        covariates: Covariates,
        *,
        average: bool = False,
        num_samples: int = 400,
        interval: float = 0.9,
        edge_threshold: float = 0.05,
        scale: Scale = "fitted",
        seed: int = 0,
    ) -> xr.Dataset:
        """Total causal effects between genes, along all directed paths: (I - W_i)^-1 - I, draw by draw.

        Parameters
        ----------
        covariates
            As for `networks`.
        average
            Whether to average the effects over the cells, in each draw, instead of reporting every cell.
        num_samples, interval, edge_threshold, scale, seed
            As for `networks`. ``"original"`` effects are units of the target per unit of the regulator.

        Returns
        -------
        xr.Dataset
            ``effect`` (posterior mean), ``lower``, ``upper`` and ``effect_probability``, P(abs(effect) >
            edge_threshold), over (cell, regulator, target), or (regulator, target) if averaged. Networks of a relaxed
            fit are projected to DAGs first.

        Raises
        ------
        DataError
            If networks among genes are no DAGs (factor networks), effects are not linear (binary data), or as in
            `networks`.
        """
        check_interval(interval)
        check_threshold(edge_threshold)
        check_scale(scale)
        self._check_causal("total_effects", linear=True)
        table, cells = self._covariates(covariates)
        unique, inverse, counts = distinct(self.model, table)
        values = self._values(num_samples, seed)
        parts = whole(self.model, unique, values, seed, self._total)
        if average:
            share, total = counts / counts.sum(), 0.0
            for at, T in parts:
                total = total + np.einsum("snab,n->sab", T.cpu().numpy(), share[at])
            low, high = quantiles_of(np.asarray(total), tails(interval))
            found = {"effect": np.mean(total, 0), "lower": low, "upper": high}
            found["effect_probability"] = (np.abs(total) > edge_threshold).mean(0)
        else:
            summaries = Summaries(inverse, num_draws_of(values), self.model, tails(interval), edge_threshold)
            for at, T in parts:
                summaries.add(Part(at, slice(0, self.model.num_genes), T))
            low, high = summaries.found["quantiles"]
            found = {"effect": summaries.found["network"], "lower": low, "upper": high}
            found["effect_probability"] = summaries.found["edge_probability"]
        result = self._named(found, None if average else cells)
        result.attrs |= {"interval": interval, "edge_threshold": edge_threshold, "scale": scale}
        return self.rescaled(result) if scale == "original" else result

    def do(
        self,
        settings: Mapping[str, float],
        covariates: Covariates,
        *,
        noise: bool = False,
        average: bool = False,
        num_samples: int = 400,
        interval: float = 0.9,
        scale: Scale = "fitted",
        seed: int = 0,
    ) -> xr.Dataset:
        """Expression of all genes if some were set to given values, from the covariates of cells alone.

        The set genes lose their regulators (Pearl's do): in each draw their columns of W_i are cut and their values
        put in place of intercept and noise.

        Parameters
        ----------
        settings
            Gene to value, on `scale`.
        covariates
            As for `networks`.
        noise
            False: expected expression, intervals over parameters only. True: expression of one cell, whose noise is
            drawn with every draw of the parameters; the same noise with and without the intervention.
        average
            Whether to average over the cells, in each draw, instead of reporting every cell.
        num_samples, interval, seed
            As for `networks`.
        scale
            ``"fitted"``: values and results in units of the data that were fitted; ``"original"``: before
            standardisation.

        Returns
        -------
        xr.Dataset
            ``level`` under the intervention, ``baseline`` without it and ``difference`` of the two: posterior means
            with ``_lower`` and ``_upper``, over (cell, gene), or (gene) if averaged.

        Raises
        ------
        DataError
            If a gene is unknown or a value not finite, networks among genes are no DAGs (factor networks), or binary
            data are asked about without noise; or as in `networks`.
        """
        check_interval(interval)
        check_scale(scale)
        self._check_causal("do", linear=not noise)
        place, center, size = self._settings(settings, scale)
        table, cells = self._covariates(covariates)
        every = (table, np.arange(len(table)), np.ones(len(table)))  # with noise no two cells are the same
        unique, inverse, counts = every if noise else distinct(self.model, table)
        values = self._values(num_samples, seed)
        if noise and num_draws_of(values) == 1:
            values = {name: value.expand(num_samples, *value.shape[1:]) for name, value in values.items()}
        found: dict[str, list[np.ndarray]] = {"level": [], "baseline": [], "difference": []}
        share = counts / counts.sum()
        with isolated(seed), torch.no_grad():
            for at in pieces(len(unique), num_draws_of(values) * self.model.num_genes**2):
                level, baseline = (x * size + center for x in self._levels(unique[at], values, place, noise))
                for name, draws in (("level", level), ("baseline", baseline), ("difference", level - baseline)):
                    mean = np.einsum("snj,n->sj", draws, share[at]) if average else None
                    found[name].append(self._ends(draws, interval) if mean is None else mean)
        result = xr.Dataset(coords={"gene": self.gene_names} | ({} if average else {"cell": cells}))
        for name, parts in found.items():
            if average:
                three = self._ends(np.sum(parts, 0), interval)
            else:
                three = np.concatenate(parts, 1)[:, inverse]
            for suffix, value in zip(("", "_lower", "_upper"), three, strict=True):
                result[name + suffix] = (("gene",) if average else ("cell", "gene"), value)
        about = ", ".join(f"{gene} = {float(value):g}" for gene, value in settings.items())
        return result.assign_attrs(do=about, interval=interval, noise=int(noise), scale=scale)

    def _check_causal(self, what: str, *, linear: bool) -> None:
        if not self.model.archetypes.acyclic:
            raise DataError(
                f"{what}: found {self.model.archetypes.kind} archetypes, whose networks among genes are summaries with "
                "cycles; wanted dense or low_rank ones, whose networks are DAGs"
            )
        if linear and not self.model.likelihood.has_scale:
            raise DataError(
                f"{what}: found a {self.model.likelihood.kind} likelihood, under which effects on expression are not "
                "linear; wanted do(..., noise=True)"
            )

    def _total(self, networks: Float[Tensor, "draw cell regulator target"]) -> Tensor:
        """(I - W)^-1 - I, zero on the diagonal as for every DAG."""
        W = project(networks).networks if self.model.form == "relaxed" else networks
        identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
        return torch.linalg.inv(identity - W) * (1 - identity)

    def _settings(self, settings: Mapping[str, float], scale: Scale) -> tuple[dict[int, float], np.ndarray, np.ndarray]:
        """Positions and fitted values of the set genes, and the way back: centre and size of a unit."""
        place = {str(name): i for i, name in enumerate(self.gene_names)}
        unknown = [gene for gene in settings if gene not in place]
        if unknown or not settings:
            raise DataError(f"do: found genes {listed(settings)}; wanted some of {listed(place)}")
        bad = {gene: value for gene, value in settings.items() if not isinstance(value, Real) or not isfinite(value)}
        if bad:
            raise DataError(f"do: found values that are not finite numbers, {bad}; wanted numbers")
        if not self.model.likelihood.has_scale and any(value not in (0, 1) for value in settings.values()):
            raise DataError(f"do: found {dict(settings)}; wanted 0 or 1 for genes that are off or on")
        center, size = np.zeros(len(place)), np.ones(len(place))
        if scale == "original":
            center, size = self.standardizer.center, self.standardizer.scale
        return {place[g]: (float(v) - center[place[g]]) / size[place[g]] for g, v in settings.items()}, center, size

    def _levels(
        self, table: np.ndarray, values: Values, settings: Mapping[int, float], noise: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expression (draw, cell, gene) with and without the intervention."""
        found: list[tuple[np.ndarray, np.ndarray]] = []
        covariates = as_input(self.model, table)
        for draws in pieces(num_draws_of(values), len(table) * self.model.num_genes**2):
            own = some(values, draws)
            W, b = self.model.networks_of(covariates, own)
            W = project(W).networks if self.model.form == "relaxed" else W
            cut, set_to = W.clone(), {j: torch.full_like(b[..., 0], value) for j, value in settings.items()}
            cut[..., list(settings)] = 0.0
            e = self._noise(b.shape, own) if noise else None
            found.append((self._solve(cut, b, e, set_to).cpu().numpy(), self._solve(W, b, e, {}).cpu().numpy()))
        level, baseline = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return level, baseline

    def _noise(self, shape: torch.Size, values: Values) -> Tensor:
        sigma = values["sigma"] if self.model.likelihood.has_scale else self.model.encoder.location.new_ones(shape[0])
        own = {name: value.reshape(shape[0], 1) for name, value in values.items() if name == "degrees_of_freedom"}
        return self.model.likelihood.noise(shape, sigma.reshape(shape[0], 1, -1), own)

    def _solve(self, W: Tensor, b: Tensor, noise: Tensor | None, set_to: Mapping[int, Tensor]) -> Tensor:
        """Expression that fulfils the equations of all genes, the set ones at their values."""

        def held(x: Tensor | None) -> Tensor:
            assert x is not None  # a likelihood without scale responds
            x = x.clone()
            for j, value in set_to.items():
                x[..., j] = value
            return x

        likelihood = self.model.likelihood
        if likelihood.has_scale:
            right = held(b if noise is None else b + noise)
            identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
            return torch.linalg.solve((identity - W).mT, right.unsqueeze(-1)).squeeze(-1)
        assert noise is not None
        x = held(likelihood.respond(b, noise))
        for _ in range(W.shape[-1]):  # genes without regulators are right at once, then their targets
            x = held(likelihood.respond(b + (x.unsqueeze(-2) @ W).squeeze(-2), noise))
        return x

    @staticmethod
    def _ends(draws: np.ndarray, interval: float) -> np.ndarray:
        """Mean and ends of the interval, stacked."""
        return np.stack([draws.mean(0), *quantiles_of(draws, tails(interval))])
