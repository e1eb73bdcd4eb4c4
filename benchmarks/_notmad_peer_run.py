"""Fits the published package contextualized-ml in its own environment; its Python runs this file, none of ours.

    python _notmad_peer_run.py DATA.npz OUT.npz NUM_ARCHETYPES EPOCHS BATCH default|strong

DATA holds `covariates`, `expression` and `new_covariates`. Uses the package's documented interface only. Times the fit
and the prediction with projection to DAGs, prints both and the versions as JSON, and writes the networks of the new
cells before (`raw`) and after (`projected`) the package's own projection.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from contextualized.easy import ContextualizedBayesianNetworks

# Options that its documentation names, at a thousand times the strengths that the NOTMAD paper's code has for
# archetypes: at these themselves (0.1 and 0.01) version 0.2.9 returns the very networks of its defaults.
NOTEARS = {
    f"{part}_{name}": value
    for part in ("sample_specific", "archetype")
    for name, value in (("dag_loss_type", "NOTEARS"), ("alpha", 100.0), ("rho", 10.0))
}


def main(data: Path, out: Path, num_archetypes: int, epochs: int, batch: int, penalty: str) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    arrays = np.load(data)
    settings = NOTEARS if penalty == "strong" else {}
    small = ContextualizedBayesianNetworks(num_archetypes=2)
    small.fit(arrays["covariates"][:40], arrays["expression"][:40, :3], max_epochs=1, train_batch_size=8)
    small.predict_networks(arrays["new_covariates"][:2], project_to_dag=True)
    model = ContextualizedBayesianNetworks(num_archetypes=num_archetypes, **settings)
    start, cpu = time.perf_counter(), time.process_time()
    model.fit(arrays["covariates"], arrays["expression"], max_epochs=epochs, train_batch_size=batch)
    fitted = time.perf_counter()
    projected = model.predict_networks(arrays["new_covariates"], project_to_dag=True)
    predicted, cpu = time.perf_counter(), time.process_time() - cpu
    raw = model.predict_networks(arrays["new_covariates"], project_to_dag=False)
    np.savez(out, projected=np.asarray(projected), raw=np.asarray(raw))
    names = ("contextualized-ml", "torch", "numpy", "igraph")
    versions = {name: version(name) for name in names}
    print(json.dumps({"fit": fitted - start, "networks": predicted - fitted, "cpu": cpu, "versions": versions}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(value) for value in sys.argv[3:6]), sys.argv[6])
