"""Matrices with a tree-shaped Kronecker-sum precision, which several tests start from."""

from __future__ import annotations

import networkx as nx
import numpy as np
import torch
from torch import Tensor


def tree_precision(size: int, seed: int) -> Tensor:
    """I + weighted adjacency of a random tree with random signs; eigenvalues in (.09, 1.91)."""
    rng = np.random.default_rng(seed)
    A = nx.to_numpy_array(nx.barabasi_albert_graph(size, 1, seed=seed))
    signs = np.triu(rng.choice([-1.0, 1.0], A.shape), 1)
    A = A * (signs + signs.T)
    degree = np.abs(A).sum(0)
    return torch.tensor(np.eye(size) + A / np.sqrt(np.outer(degree, degree)) / 1.1)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n: int, p: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix without row and column scales, and the two factors of its precision."""
    row, col = tree_precision(n, seed), tree_precision(p, seed + 50)
    (lam, V), (mu, U) = torch.linalg.eigh(row), torch.linalg.eigh(col)
    return V @ ((V.mT @ normal(n, p, seed=seed) @ U) / (lam[:, None] + mu).sqrt()) @ U.mT, row, col
