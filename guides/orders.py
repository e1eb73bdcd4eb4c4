"""Posterior over orders of the genes with edges and noise integrated out, given the archetype weights Z.

Given Z, gene b with predecessors S is a Bayesian linear regression on the K|S| features Z_ik X_ia and the K features
Z_ik of the archetypal intercepts, with weights Normal(0, v sigma_b^2); its evidence is a closed form, and an order's
score is the sum over genes (fixed-order BGe-type score; the collapsed counterpart of the model in `models.notmad`).

Features are sorted like the order, so predecessors are always a prefix, and one Cholesky factor of the Gram matrix
holds the regressions of all genes on all prefixes: with ``L c = F'x``, the residual sum of squares on a prefix is
``x'x`` less the squares of c up to there. One more gene is a block of K features, its Schur complement a K x K matrix
that is summed up along the same rows. Hence all p places of a gene are scored by one factorisation (`places`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from jaxtyping import Float, Int

EDGE_VARIANCE = 0.3
INTERCEPT_VARIANCE = 1.0
Noise = Literal["equal", "free"]


class ScoresOrders(Protocol):
    """What the search and the sampler ask of a score."""

    num_genes: int

    def __call__(self, order: Int[np.ndarray, " gene"]) -> float:
        """Log score of an order."""
        ...

    def places(self, others: Int[np.ndarray, " other"], gene: int) -> Float[np.ndarray, " gene"]:
        """Log scores of the orders that have `gene` at each place among `others`."""
        ...


class OrderScore:
    """Collapsed log score of an order, up to a constant.

    Parameters
    ----------
    expression
        X, shape (cell, gene).
    mixture
        Z, shape (cell, archetype).
    noise
        ``"equal"``: one unknown noise variance for all genes; ``"free"``: one a gene. Variances have inverse-Gamma
        priors and are integrated out.
    """

    def __init__(
        self, expression: Float[np.ndarray, "cell gene"], mixture: Float[np.ndarray, "cell archetype"], noise: Noise
    ) -> None:
        self.num_cells, self.num_genes = expression.shape
        self.num_archetypes = mixture.shape[1]
        self.noise = noise
        regressors = np.concatenate([np.ones((self.num_cells, 1)), expression], 1)  # the first block: intercepts
        features = (regressors[:, :, None] * mixture[:, None, :]).reshape(self.num_cells, -1)
        self._gram = features.T @ features
        self._cross = features.T @ expression
        self._squares = (expression**2).sum(0)
        variance = np.full(features.shape[1], EDGE_VARIANCE)
        variance[: self.num_archetypes] = INTERCEPT_VARIANCE
        self._gram[np.diag_indices_from(self._gram)] += 1 / variance
        self._half_log_variance = 0.5 * np.log(variance)

    def __call__(self, order: Int[np.ndarray, " gene"]) -> float:
        """Log score of an order."""
        order = np.asarray(order)
        columns, log_det = self._prefixes(order[:-1], self._cross[:, order])
        rss = self._squares[order] - np.diagonal((columns**2).sum(1).cumsum(0))
        return float(self._total(self._fits(rss).sum(), log_det.sum()))

    def places(self, others: Int[np.ndarray, " other"], gene: int) -> Float[np.ndarray, " gene"]:
        """Log scores of the orders that have `gene` at each place among `others`, the other genes in their order."""
        own = self._rows([gene])
        K, p, place = self.num_archetypes, self.num_genes, np.arange(len(others))
        right = np.concatenate([self._cross[:, others], self._cross[:, [gene]], self._gram[:, own]], 1)
        columns, log_det = self._prefixes(others, right)
        explained = (columns[:, :, :p] ** 2).sum(1).cumsum(0)  # (block, gene): by intercepts, then one more gene each
        without = self._squares[others] - explained[place, place]
        itself = self._squares[gene] - explained[:, -1]
        block = columns[:, :, p:]
        schur = self._gram[np.ix_(own, own)] - (block.transpose(0, 2, 1) @ block).cumsum(0)[:-1]
        seen = (np.arange(p)[:, None] <= place).repeat(K, 0)  # rows that count for the gene at each place
        cross = self._cross[own][:, others] - block.reshape(-1, K).T @ (
            columns[:, :, : p - 1].reshape(-1, p - 1) * seen
        )
        gain = (np.linalg.solve(schur, cross.T[:, :, None])[..., 0] * cross.T).sum(1)
        more = 0.5 * np.linalg.slogdet(schur)[1] + self._half_log_variance[own].sum()
        log_dets = before(log_det[:-1]) + after(log_det[:-1] + more) + log_det
        fits = before(self._fits(without)) + after(self._fits(without - gain)) + self._fits(itself)
        return self._total(fits, log_dets)

    def _prefixes(
        self, genes: Int[np.ndarray, " gene"], right: Float[np.ndarray, "feature column"]
    ) -> tuple[Float[np.ndarray, "block archetype column"], Float[np.ndarray, " block"]]:
        """L^-1 of `right`, features sorted like the genes, and the log determinant terms of all prefixes."""
        rows = np.concatenate([np.arange(self.num_archetypes), self._rows(genes)])
        factor = cholesky(self._gram[np.ix_(rows, rows)], lower=True, check_finite=False)
        columns = solve_triangular(factor, right[rows], lower=True, check_finite=False)
        log_det = np.log(np.diag(factor)) + self._half_log_variance[rows]
        shape = (-1, self.num_archetypes)
        return columns.reshape(*shape, right.shape[1]), log_det.reshape(shape).sum(1).cumsum()

    def _rows(self, genes: Int[np.ndarray, " gene"] | list[int]) -> Int[np.ndarray, " row"]:
        first = (np.asarray(genes, dtype=int) + 1) * self.num_archetypes
        return (first[:, None] + np.arange(self.num_archetypes)).ravel()

    def _fits(self, rss: Float[np.ndarray, " gene"]) -> Float[np.ndarray, " gene"]:
        """What is summed over genes before `_total`: residuals for equal noise, log evidences for free noise."""
        return rss if self.noise == "equal" else np.log1p(0.5 * rss)

    def _total(
        self, fits: float | Float[np.ndarray, " order"], log_dets: float | Float[np.ndarray, " order"]
    ) -> Float[np.ndarray, " order"]:
        if self.noise == "equal":
            return -(2 + 0.5 * self.num_cells * self.num_genes) * np.log1p(0.5 * np.asarray(fits)) - log_dets
        return -(2 + 0.5 * self.num_cells) * np.asarray(fits) - log_dets


def before(values: Float[np.ndarray, " other"]) -> Float[np.ndarray, " place"]:
    """Sums over the genes before each place."""
    return np.concatenate([[0.0], values.cumsum()])


def after(values: Float[np.ndarray, " other"]) -> Float[np.ndarray, " place"]:
    """Sums over the genes from each place on."""
    return np.concatenate([values[::-1].cumsum()[::-1], [0.0]])


def climb(
    score: ScoresOrders, order: Int[np.ndarray, " gene"], *, progress: bool = True, max_sweeps: int = 50
) -> Int[np.ndarray, " gene"]:
    """Ascent over "take a gene out, insert it where it scores best", gene by gene until none wants to move."""
    order = np.asarray(order)
    value, content = score(order), 0
    with tqdm(desc="order search", disable=not progress, leave=False) as bar:
        for _ in range(max_sweeps):
            for gene in order.copy():
                others = order[order != gene]
                scores = score.places(others, int(gene))
                best = int(scores.argmax())
                content += 1
                if scores[best] > value + 1e-9 * (1 + abs(value)):
                    order, value, content = np.insert(others, best, gene), scores[best], 0
                bar.update()
                if content >= score.num_genes:
                    return order
    return order


def sample_orders(
    score: ScoresOrders,
    start: Int[np.ndarray, " gene"],
    *,
    num_orders: int = 8,
    num_steps: int = 500,
    num_burn_in: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Int[np.ndarray, "draw gene"], float]:
    """Gibbs sampling of orders: a random gene is drawn anew among all its places; uniform prior over orders.

    Returns
    -------
    tuple
        `num_orders` orders kept evenly after burn-in, with repetitions, and the share of steps that moved a gene.
    """
    rng = np.random.default_rng(seed)
    order, moved, visited = np.asarray(start), 0, []
    for step in tqdm(range(num_steps), desc="order sampling", disable=not progress, leave=False):
        gene = int(rng.integers(score.num_genes))
        others = order[order != gene]
        scores = score.places(others, gene)
        place = int((scores + rng.gumbel(size=len(scores))).argmax())
        new = np.insert(others, place, gene)
        moved += int((new != order).any())
        order = new
        if step >= num_burn_in:
            visited.append(order)
    keep = np.linspace(0, len(visited) - 1, num_orders).round().astype(int)
    return np.stack([visited[i] for i in keep]), moved / num_steps
