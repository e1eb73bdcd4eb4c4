"""The score of `guides.orders` for many genes: every gene chooses its regulators among a few candidates.

A Gram matrix of all archetypes x genes can be kept for a thousand genes but not factorised for every move. Candidates
of a gene are found by orthogonal matching pursuit without an order, which takes in regulators and targets alike; given
an order, those that come before the gene are its regulators. An edge that screening missed is lost to the order search,
not to the model that is fitted afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from .orders import EDGE_VARIANCE, INTERCEPT_VARIANCE, Noise, after, before

if TYPE_CHECKING:
    from jaxtyping import Float, Int

NUM_ROUNDS = 3
PER_ROUND = 8
ROUNDING = 1e-5  # of the Gram matrix, relative to its diagonal


class SparseOrderScore:
    """`OrderScore` with regulators restricted to candidates.

    Parameters
    ----------
    expression, mixture, noise
        As for `OrderScore`.
    candidates
        Candidates of every gene; by screening unless given.
    """

    def __init__(
        self,
        expression: Float[np.ndarray, "cell gene"],
        mixture: Float[np.ndarray, "cell archetype"],
        noise: Noise,
        candidates: list[set[int]] | None = None,
    ) -> None:
        self.num_cells, self.num_genes = expression.shape
        self.num_archetypes, self.noise = mixture.shape[1], noise
        # Single precision, since the matrix is large; `ROUNDING` keeps it positive definite.
        X, Z = expression.astype(np.float32), mixture.astype(np.float32)
        regressors = np.concatenate([np.ones((self.num_cells, 1), np.float32), X], 1)
        features = (regressors[:, :, None] * Z[:, None, :]).reshape(self.num_cells, -1)
        self._gram, self._cross = features.T @ features, features.T @ X
        self._squares = (expression**2).sum(0, dtype=float)
        self._fitted: dict[tuple[int, frozenset[int]], tuple[float, float]] = {}
        self.candidates = screened(self) if candidates is None else candidates
        self._of = [
            [other for other in range(self.num_genes) if gene in self.candidates[other]]
            for gene in range(self.num_genes)
        ]

    def __call__(self, order: Int[np.ndarray, " gene"]) -> float:
        """Log score of an order."""
        seen: set[int] = set()
        terms = []
        for gene in map(int, order):
            terms.append(self._term(gene, frozenset(self.candidates[gene] & seen)))
            seen.add(gene)
        fits, log_dets = np.array(terms).T
        return float(self._total(self._fits(fits).sum(), log_dets.sum()))

    def places(self, others: Int[np.ndarray, " other"], gene: int) -> Float[np.ndarray, " gene"]:
        """As `OrderScore.places`."""
        place = {int(other): at for at, other in enumerate(others)}
        p, own = self.num_genes, sorted(self.candidates[gene], key=place.__getitem__)
        steps = np.array([self._term(gene, frozenset(own[:count])) for count in range(len(own) + 1)])
        itself = steps[np.searchsorted([place[other] for other in own], np.arange(p), side="left")]
        without, with_gene = self._known(others, place, gene)
        fits = before(self._fits(without[:, 0])) + after(self._fits(with_gene[:, 0])) + self._fits(itself[:, 0])
        log_dets = before(without[:, 1]) + after(with_gene[:, 1]) + itself[:, 1]
        return self._total(fits, log_dets)

    def _known(
        self, others: Int[np.ndarray, " other"], place: dict[int, int], gene: int
    ) -> tuple[Float[np.ndarray, "other 2"], Float[np.ndarray, "other 2"]]:
        """Terms of the other genes, without `gene` before them and with it."""
        without = np.empty((len(others), 2))
        for at, other in enumerate(map(int, others)):
            regulators = frozenset(a for a in self.candidates[other] if a != gene and place[a] < at)
            without[at] = self._term(other, regulators)
        with_gene = without.copy()
        for other in self._of[gene]:
            at = place[other]
            regulators = frozenset(a for a in self.candidates[other] if a == gene or place[a] < at)
            with_gene[at] = self._term(other, regulators)
        return without, with_gene

    def means(
        self, order: Int[np.ndarray, " gene"]
    ) -> tuple[
        Float[np.ndarray, "archetype regulator target"], Float[np.ndarray, "archetype gene"], Float[np.ndarray, " gene"]
    ]:
        """Posterior means of archetypes and intercepts given an order, and noise variances."""
        K, p = self.num_archetypes, self.num_genes
        seen: set[int] = set()
        archetypes, intercepts, variances = np.zeros((K, p, p)), np.zeros((K, p)), np.empty(p)
        for gene in map(int, order):
            regulators = sorted(self.candidates[gene] & seen)
            found = self.coefficients(gene, regulators)
            intercepts[:, gene], archetypes[:, regulators, gene] = found[0], found[1:].T
            variances[gene] = self._term(gene, frozenset(regulators))[0] / self.num_cells
            seen.add(gene)
        return archetypes, intercepts, variances

    def coefficients(self, gene: int, regulators: list[int]) -> Float[np.ndarray, "block archetype"]:
        """Posterior mean of intercepts (first) and effects of the regulators on a gene."""
        rows, factor = self._factor(regulators)
        return cho_solve(factor, self._cross[rows, gene].astype(float)).reshape(-1, self.num_archetypes)

    def _term(self, gene: int, regulators: frozenset[int]) -> tuple[float, float]:
        """Residual sum of squares and log determinant of a gene."""
        key = (gene, regulators)
        if key not in self._fitted:
            rows, factor = self._factor(sorted(regulators))
            cross = self._cross[rows, gene].astype(float)
            rss = self._squares[gene] - cross @ cho_solve(factor, cross, check_finite=False)
            log_det = np.log(np.diag(factor[0])).sum() + 0.5 * np.log(self._variance(len(rows))).sum()
            self._fitted[key] = (max(float(rss), 0.0), float(log_det))
        return self._fitted[key]

    def _factor(self, regulators: list[int]) -> tuple[Int[np.ndarray, " row"], tuple[np.ndarray, bool]]:
        K = self.num_archetypes
        rows = (np.array([0, *(a + 1 for a in regulators)])[:, None] * K + np.arange(K)).ravel()
        gram = self._gram[np.ix_(rows, rows)].astype(float)
        gram[np.diag_indices_from(gram)] *= 1 + ROUNDING
        gram[np.diag_indices_from(gram)] += 1 / self._variance(len(rows))
        return rows, cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)

    def _variance(self, size: int) -> Float[np.ndarray, " row"]:
        variance = np.full(size, EDGE_VARIANCE)
        variance[: self.num_archetypes] = INTERCEPT_VARIANCE
        return variance

    def _fits(self, rss: Float[np.ndarray, " gene"]) -> Float[np.ndarray, " gene"]:
        return rss if self.noise == "equal" else np.log1p(0.5 * rss)

    def _total(self, fits: np.ndarray, log_dets: np.ndarray) -> Float[np.ndarray, " order"]:
        if self.noise == "equal":
            return -(2 + 0.5 * self.num_cells * self.num_genes) * np.log1p(0.5 * fits) - log_dets
        return -(2 + 0.5 * self.num_cells) * fits - log_dets


def screened(score: SparseOrderScore) -> list[set[int]]:
    """Candidates of every gene: in each round those that explain most of what is left of it."""
    K, p = score.num_archetypes, score.num_genes
    chosen: list[list[int]] = [[] for _ in range(p)]
    blocks = np.stack([score._gram[K * a : K * a + K, K * a : K * a + K] for a in range(1, p + 1)]).astype(float)
    inverse = np.linalg.inv(blocks + np.eye(K) / EDGE_VARIANCE)
    for _ in range(NUM_ROUNDS):
        weights = np.zeros_like(score._cross)
        for gene in range(p):
            found = score.coefficients(gene, chosen[gene])
            for block, regulator in zip(found, [-1, *chosen[gene]], strict=True):
                weights[K * (regulator + 1) : K * (regulator + 2), gene] = block
        left = (score._cross - score._gram @ weights)[K:].reshape(p, K, p)
        gain = np.einsum("akb,akl,alb->ab", left, inverse.astype(np.float32), left, optimize=True)
        np.fill_diagonal(gain, -np.inf)
        for gene in range(p):
            gain[chosen[gene], gene] = -np.inf
            new = np.argsort(-gain[:, gene], kind="stable")[:PER_ROUND]
            chosen[gene] += [int(a) for a in new if np.isfinite(gain[a, gene])]
    return [set(some) for some in chosen]
