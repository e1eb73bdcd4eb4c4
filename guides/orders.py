"""Posterior over orders of the genes with edges and noise integrated out, given the archetype weights Z.

Given Z, gene b with predecessors S is a Bayesian linear regression on the K|S| features Z_ik X_ia and the K features
Z_ik of the archetypal intercepts, with weights Normal(0, v sigma_b^2); its evidence is a closed form, and an order's
score is the sum over genes (fixed-order BGe-type score; the collapsed counterpart of the model in `models.notmad`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from jaxtyping import Float, Int

EDGE_VARIANCE = 0.3
INTERCEPT_VARIANCE = 1.0


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
        self,
        expression: Float[np.ndarray, "cell gene"],
        mixture: Float[np.ndarray, "cell archetype"],
        noise: Literal["equal", "free"],
    ) -> None:
        self.num_cells, self.num_genes = expression.shape
        self.num_archetypes = mixture.shape[1]
        self.noise = noise
        regressors = np.concatenate([expression, np.ones((self.num_cells, 1))], 1)  # the last block: intercepts
        features = (regressors[:, :, None] * mixture[:, None, :]).reshape(self.num_cells, -1)
        self._gram = features.T @ features
        self._cross = features.T @ expression
        self._squares = (expression**2).sum(0)
        variance = np.full(features.shape[1], EDGE_VARIANCE)
        variance[-self.num_archetypes :] = INTERCEPT_VARIANCE
        self._gram[np.diag_indices_from(self._gram)] += 1 / variance
        self._half_log_variance = 0.5 * np.log(variance)
        self._blocks = np.arange(features.shape[1]).reshape(-1, self.num_archetypes)
        self._cache: dict[tuple[int, int], tuple[float, float]] = {}

    def gene(self, gene: int, predecessors: int) -> tuple[float, float]:
        """Residual sum of squares and log determinant term of one gene; `predecessors` is a bit set of genes."""
        key = (gene, predecessors)
        if key not in self._cache:
            chosen = [a for a in range(self.num_genes) if predecessors >> a & 1]
            index = self._blocks[[*chosen, self.num_genes]].ravel()
            factor = cho_factor(self._gram[np.ix_(index, index)], lower=True, check_finite=False)
            cross = self._cross[index, gene]
            rss = self._squares[gene] - cross @ cho_solve(factor, cross, check_finite=False)
            log_det = np.log(np.diag(factor[0])).sum() + self._half_log_variance[index].sum()
            self._cache[key] = (max(float(rss), 0.0), float(log_det))
        return self._cache[key]

    def terms(self, order: Int[np.ndarray, " gene"]) -> Float[np.ndarray, "gene 2"]:
        """The two terms of every gene, in the sequence of the order."""
        before, result = 0, np.empty((self.num_genes, 2))
        for place, gene in enumerate(order):
            result[place] = self.gene(int(gene), before)
            before |= 1 << int(gene)
        return result

    def total(self, terms: Float[np.ndarray, "gene 2"]) -> float:
        """Combine the genes' terms into the log score of the order."""
        rss, log_det = terms[:, 0], terms[:, 1].sum()
        if self.noise == "equal":
            return float(-(2 + 0.5 * self.num_cells * self.num_genes) * np.log1p(0.5 * rss.sum()) - log_det)
        return float(-(2 + 0.5 * self.num_cells) * np.log1p(0.5 * rss).sum() - log_det)

    def __call__(self, order: Int[np.ndarray, " gene"]) -> float:
        """Log score of an order."""
        return self.total(self.terms(order))

    def moved(
        self, order: Int[np.ndarray, " gene"], terms: Float[np.ndarray, "gene 2"], source: int, place: int
    ) -> tuple[Int[np.ndarray, " gene"], Float[np.ndarray, "gene 2"]]:
        """The order with the gene at `source` taken out and inserted at `place`; only genes in between change."""
        new = np.insert(np.delete(order, source), place, order[source])
        low, high = min(source, place), max(source, place)
        new_terms = terms.copy()
        before = sum(1 << int(gene) for gene in new[:low])
        for i in range(low, high + 1):
            new_terms[i] = self.gene(int(new[i]), before)
            before |= 1 << int(new[i])
        return new, new_terms


def _window(num_genes: int) -> int:
    return num_genes if num_genes <= 25 else 8  # larger problems: a sweep of all moves costs p^3 regressions


def climb(
    score: OrderScore, order: Int[np.ndarray, " gene"], *, progress: bool = True, max_moves: int = 200
) -> Int[np.ndarray, " gene"]:
    """Steepest ascent over "take a gene out, insert it elsewhere" (within 8 places when there are over 25 genes)."""
    order, window = np.asarray(order), _window(score.num_genes)
    terms = score.terms(order)
    value = score.total(terms)
    for _ in tqdm(range(max_moves), desc="order search", disable=not progress, leave=False):
        best = None
        for source in range(score.num_genes):
            for place in range(max(0, source - window), min(score.num_genes, source + window + 1)):
                if place in (source, source - 1):  # a swap of neighbours is tried once
                    continue
                candidate = score.moved(order, terms, source, place)
                candidate_value = score.total(candidate[1])
                if candidate_value > value + 1e-9:
                    best, value = candidate, candidate_value
        if best is None:
            break
        order, terms = best
    return order


def sample_orders(
    score: OrderScore,
    start: Int[np.ndarray, " gene"],
    *,
    num_orders: int = 8,
    num_steps: int = 2000,
    num_burn_in: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Int[np.ndarray, "draw gene"], float]:
    """Metropolis over orders with the moves of `climb` at random; uniform prior over orders.

    Returns
    -------
    tuple
        `num_orders` orders kept evenly after burn-in, with repetitions, and the share of moves accepted.
    """
    rng = np.random.default_rng(seed)
    order, window = np.asarray(start), _window(score.num_genes)
    terms = score.terms(order)
    value, accepted, visited = score.total(terms), 0, []
    for step in tqdm(range(num_steps), desc="order sampling", disable=not progress, leave=False):
        source = int(rng.integers(score.num_genes))
        whole = window == score.num_genes
        place = int(rng.integers(score.num_genes)) if whole else source + int(rng.integers(-window, window + 1))
        log_uniform = np.log(rng.random())
        if 0 <= place < score.num_genes and place != source:
            candidate = score.moved(order, terms, source, place)
            candidate_value = score.total(candidate[1])
            if log_uniform < candidate_value - value:
                (order, terms), value, accepted = candidate, candidate_value, accepted + 1
        if step >= num_burn_in:
            visited.append(order)
    keep = np.linspace(0, len(visited) - 1, num_orders).round().astype(int)
    return np.stack([visited[i] for i in keep]), accepted / num_steps
