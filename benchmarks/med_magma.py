"""MED-MAGMA against baselines: recovery, calibration, real cells, cost and growth.

    python benchmarks/med_magma.py synthetic --keep synthetic.jsonl      # --seeds, --sizes, --matrices, --graphs, ...
    python benchmarks/med_magma.py calibration --keep calibration.jsonl
    python benchmarks/med_magma.py real --data ../shared/data/scrna --keep real.jsonl
    python benchmarks/med_magma.py cost --peer PYTHON                    # GmGM, in PYTHON's environment
    python benchmarks/med_magma.py growth
    python benchmarks/med_magma.py large --size 5000

`benchmarks/README.md` has the tables, and what each command takes.
"""

from __future__ import annotations

from pathlib import Path

from _front import Command, Options, named, numbers, run
from _med_magma_calibration import calibration
from _med_magma_cost import cost
from _med_magma_growth import growth, large
from _med_magma_real import SETS, real
from _med_magma_synthetic import synthetic
from _med_magma_tables import GRAPHS, SIZES
from _tables import REPOSITORY, names_of

SIZE: Options = named("--sizes", SIZES)
DESIGN: Options = {**SIZE, **named("--graphs", GRAPHS)}
SMALL = {"seeds": [0], "sizes": ["50x51"], "graphs": ["ba1"], "matrices": [1]}


def some(default: list[object], about: str = "with commas") -> dict[str, object]:
    return {"type": names_of(type(default[0])), "default": default, "help": about}


COMMANDS = {
    "synthetic": Command(
        synthetic,
        {
            **numbers("--seeds", "0-4"), **DESIGN,
            "--matrices": some([1, 5, 20]),
            **named("--signs", ("positive", "random")),
            "--noise": some([0.0, 0.5, 1.0]),
            "--degrees": some([1], "m at which degrees are told as well"),
            "--invariance": some([1, 5], "m at which levels of noise are compared"),
            "--published": {"type": int, "default": 1, "help": "seeds on which the published estimator runs (m 1)"},
        },
        {**SMALL, "signs": ["random"], "noise": [0.0, 1.0], "published": 0},
    ),
    "calibration": Command(
        calibration,
        {
            **numbers("--seeds", "0-9"), **numbers("--prior-seeds", "0-9", "of draws from the prior"), **DESIGN,
            "--matrices": some([1, 5]),
        },
        {**SMALL, "prior_seeds": [0]},
    ),
    "real": Command(
        real,
        {
            "--data": {"type": Path, "default": REPOSITORY.parent / "shared" / "data" / "scrna"},
            **named("--sets", SETS),
            "--published-up-to": {"type": int, "default": 300, "help": "cells above which it is left out"},
            "--all-genes": {"action": "store_true", "help": "all genes of PBMC, not about as many as cells"},
            "--every": {"type": int, "default": 1, "help": "take every so many cells"},
        },
        {"sets": ["pbmc"], "every": 12, "published_up_to": 0},
        seed="0 of the fits, 0-4 of Louvain",
    ),
    "cost": Command(
        cost,
        {
            **SIZE,
            "--repeats": {"type": int, "default": 5},
            "--peer": {"type": Path, "default": None, "help": "Python of an environment with GmGM"},
        },
        {"sizes": ["50x51"], "repeats": 1},
        keeps=False,
    ),
    "growth": Command(
        growth,
        {
            "--sizes": some([50, 100, 200, 500, 1000, 2000]),
            "--sparse-up-to": {"type": int, "default": 500, "help": "largest size for the default"},
        },
        {"sizes": [20]},
    ),
    "large": Command(
        large,
        {"--size": {"type": int, "default": 5000}, "--steps": {"type": int, "default": 3}},
        {"size": 30, "steps": 2},
    ),
}  # fmt: skip

if __name__ == "__main__":
    run(__doc__, COMMANDS)
