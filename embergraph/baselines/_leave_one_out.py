"""Networks of single cells from what a fit owes to each: n (all - without) + without, and the same for a new cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Network = Float[np.ndarray, "regulator target"]
    Networks = Float[np.ndarray, "cell regulator target"]
    Values = Float[np.ndarray, "cell gene"]


class WeightRefits(NamedTuple):
    """Ridge regressions of every gene on its parents, and how one cell moves them."""

    network: Network
    parents: list[np.ndarray]
    inverses: list[np.ndarray]
    num_cells: int

    @classmethod
    def of(cls, covariance: Network, allowed: Bool[np.ndarray, "p p"], penalty: float, num_cells: int) -> WeightRefits:
        network, parents, inverses = np.zeros_like(covariance), [], []
        for target in range(len(covariance)):
            chosen = np.flatnonzero(allowed[:, target])
            gram = num_cells * covariance[np.ix_(chosen, chosen)] + penalty * np.eye(len(chosen))
            inverse = np.linalg.pinv(gram, hermitian=True)
            network[chosen, target] = inverse @ (num_cells * covariance[chosen, target])
            parents.append(chosen)
            inverses.append(inverse)
        return cls(network, parents, inverses, num_cells)

    def without(self, deviations: Values) -> Networks:
        """LIONESS networks of the training cells, from their deviations from the mean."""
        return self._moved(deviations, -self.num_cells / (self.num_cells - 1))

    def with_new(self, deviations: Values) -> Networks:
        """LIONESS networks of new cells, each added alone."""
        return self._moved(deviations, self.num_cells / (self.num_cells + 1))

    def _moved(self, deviations: Values, change: float) -> Networks:
        """Networks w + n e G^-1 d / (1 + change d' G^-1 d).

        With scatter A, a cell changes A by `change` d d' (d its deviation from the mean of all, e its residual), and by
        Sherman and Morrison the weights by change e G^-1 d / (1 + change d' G^-1 d), G = A + penalty. LIONESS
        multiplies the difference such that n remains of the factor `change`, whether a cell goes or comes.
        """
        out = np.repeat(self.network[None], len(deviations), axis=0)
        for target, (parents, inverse) in enumerate(zip(self.parents, self.inverses, strict=True)):
            d = deviations[:, parents]
            error = deviations[:, target] - d @ self.network[parents, target]
            step = d @ inverse
            factor = self.num_cells * error / (1 + change * np.sum(step * d, axis=1))
            out[:, parents, target] += factor[:, None] * step
        return out


class StructureRefits(NamedTuple):
    """DAGs learnt anew for every cell."""

    learn: Callable[[Values], Network]
    train: Values
    network: Network

    def without(self, deviations: Values) -> Networks:
        """LIONESS networks of the training cells."""
        count = len(deviations)
        cells = tqdm(range(count), desc="LIONESS", leave=False)
        return np.stack([self._left(np.delete(self.train, i, axis=0), count, 1 - count) for i in cells])

    def with_new(self, deviations: Values) -> Networks:
        """LIONESS networks of new cells, each added alone."""
        count, mean = len(self.train), self.train.mean(axis=0)
        cells = tqdm(deviations, desc="LIONESS", leave=False)
        return np.stack([self._left(np.vstack([self.train, mean + d]), -count, count + 1) for d in cells])

    def _left(self, values: Values, of_all: int, of_other: int) -> Network:
        other = self.learn(values - values.mean(axis=0))
        return of_all * self.network + of_other * other
