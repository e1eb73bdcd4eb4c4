"""Times the published package GmGM in its own environment: its Python runs this file, which imports nothing of ours.

    python _med_magma_peer.py MATRIX.npy REPEATS OUT.npz

The first call compiles and is not counted. Prints versions and seconds as JSON; writes both precision matrices.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from GmGM import Dataset, GmGM


def main(matrix: Path, repeats: int, out: Path) -> None:
    expression = np.load(matrix)
    run(expression)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = run(expression)
        seconds.append(time.perf_counter() - start)
    np.savez(out, **{axis: np.asarray(dense(found.precision_matrices[axis])) for axis in ("cell", "gene")})
    names = ("GmGM", "numpy", "scipy", "numba")
    print(json.dumps({"seconds": seconds, "versions": {name: version(name) for name in names}}))


def run(expression: np.ndarray) -> Any:
    """Fit as the MED-MAGMA paper does: no centring, all edges kept."""
    data = Dataset(dataset={"counts": expression.copy()}, structure={"counts": ("cell", "gene")})
    return GmGM(data, to_keep=1.0, threshold_method="overall")


def dense(matrix: Any) -> Any:
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
