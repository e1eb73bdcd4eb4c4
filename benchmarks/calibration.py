"""How far the posteriors of all methods can be trusted, on data drawn from their own priors.

    python benchmarks/calibration.py methods                                # everything; 40 minutes on one core
    python benchmarks/calibration.py methods --cases exact,mean_field       # the two controls
    python benchmarks/calibration.py methods --jobs 8 --folder kept         # parallel, and to go on from

`benchmarks/README.md` has the table, and what it takes.
"""

from __future__ import annotations

import argparse
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _calibration_cases import CASES, Case
from _front import Command, run
from _tables import Row, Tables, names_of

import embergraph as eg

ENDS = ("", "_low", "_high")
"""A coverage, and the ends of its 95 % interval."""


def methods(options: argparse.Namespace) -> Tables:
    """Simulation-based calibration of every method: verdict, coverage of 90 % intervals, k-hat of the guide."""
    rows = []
    for name in options.cases:
        case = CASES[name]
        num = options.replicates or case.replicates
        rows += measured(case, num, options)
    return {"Posteriors on simulations from the prior": rows}


def measured(case: Case, num_replicates: int, options: argparse.Namespace) -> list[Row]:
    """One row a reading."""
    model, data = case.model()
    result = eg.calibrate(
        model, data, fit=case.fit, num_replicates=num_replicates, seed=options.seed, n_jobs=options.jobs,
        simulate=None if case.simulate is None else partial(_simulated, case.simulate, model, data),
        checkpoint=None if options.folder is None else options.folder / _slug(case), **case.options,
    )  # fmt: skip
    print(f"\n{case.title}\n{eg.calibration_text(result)}", flush=True)
    return [row_of(case, result.sel(reading=name)) for name in result["reading"].values]


def row_of(case: Case, found: Any) -> Row:
    khat = found["guide_khat"].values
    known = khat[~np.isnan(khat)]
    return {
        "method": case.title,
        "what users read": str(found["reading"].item()),
        "verdict": str(found["verdict"].item()),
        "90 % intervals hold": _share(found, "coverage", 0.9) or _share(found, "interval_coverage"),
        "50 %": _share(found, "coverage", 0.5),
        "calibration error (by chance)": _stated(found),
        "k-hat, median": f"{np.median(known):.2f}" if known.size else "",
        "replicates (failed)": f"{found.attrs['num_replicates']} ({found.attrs['num_failures']})",
    }


def _simulated(draw: Any, model: Any, data: Any, seed: int) -> Any:
    return draw(model, data, seed)


def _share(found: Any, name: str, mass: float | None = None) -> str:
    if name not in found:
        return ""
    ends = (found[f"{name}{end}"] if mass is None else found[f"{name}{end}"].sel(mass=mass) for end in ENDS)
    share, low, high = (100 * float(end) for end in ends)
    return "" if np.isnan(share) else f"{share:.1f} ({low:.0f} to {high:.0f})"


def _stated(found: Any) -> str:
    if "calibration_error" not in found or np.isnan(float(found["calibration_error"])):
        return ""
    return f"{float(found['calibration_error']):.3f} ({float(found['calibration_error_chance']):.3f})"


def _slug(case: Case) -> str:
    return next(name for name, known in CASES.items() if known is case)


COMMANDS = {
    "methods": Command(
        methods,
        {
            "--cases": {"type": names_of(), "default": list(CASES), "help": f"among {','.join(CASES)}"},
            "--replicates": {"type": int, "default": None, "help": "of every case; each has its own number"},
            "--seed": {"type": int, "default": 0},
            "--jobs": {"type": int, "default": 1, "help": "replicates at a time"},
            "--folder": {"type": Path, "default": None, "help": "keeps finished replicates, to go on from"},
        },
        {"cases": ["exact"], "replicates": 3},
        keeps=False,
    ),
}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.filterwarnings("ignore", message="latent axes not determined")  # some draws of the prior leave them so
    run(__doc__, COMMANDS)
