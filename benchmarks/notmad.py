"""NOTMAD against baselines and its published successor: recovery, coverage, real cells, cost.

    python benchmarks/notmad.py simulated                        # raw scale, K 3, the default plan, seeds 0-9
    python benchmarks/notmad.py simulated --scale gene           # standardised
    python benchmarks/notmad.py simulated --archetypes 5         # over-specified K
    python benchmarks/notmad.py conflict                         # conflicting orders
    python benchmarks/notmad.py interactions --seeds 0-2         # covariates that interact
    python benchmarks/notmad.py choice                           # one order or orders of their own, by held-out density
    python benchmarks/notmad.py sachs --archetypes 2-9
    python benchmarks/notmad.py ablations --seeds 0-1
    python benchmarks/notmad.py table1 --data FOLDER
    python benchmarks/notmad.py peer --peer PYTHON --seeds 0-2   # contextualized-ml, in PYTHON's environment
    python benchmarks/notmad.py growth                           # time and memory, p 10 to 200, n 1e3 and 1e4
    python benchmarks/notmad.py large                            # n 9715, p 784, K 8

`benchmarks/README.md` has the tables, and what each command takes.
"""

from __future__ import annotations

from pathlib import Path

from _front import Command, Options, numbers, run
from _notmad_ablations import ablations
from _notmad_choice import choice
from _notmad_conflict import conflict, interactions
from _notmad_growth import growth, large
from _notmad_peer import peer
from _notmad_sachs import sachs
from _notmad_simulated import simulated
from _notmad_table1 import table1
from _tables import names_of

SIZE: Options = {"--cells": {"type": int, "default": 1000}, "--genes": {"type": int, "default": 10}}
SMALL = {"seeds": [0], "cells": 60, "genes": 4}
SCALE: Options = {"--scale": {"choices": ["common", "gene"], "default": "common"}}
COVARIATES: Options = {"--covariates": {"type": int, "default": 4}}
POSTERIOR: Options = {"--posterior": {"default": "auto"}}
MODEL: Options = {"--encoder": {"default": "gp"}, **POSTERIOR}
BARE: Options = {"--no-baselines": {"action": "store_true"}}


def number_of_archetypes(default: int) -> Options:
    return {"--archetypes": {"type": int, "default": default}}


COMMANDS = {
    "simulated": Command(
        simulated,
        {**numbers("--seeds", "0-9"), **SCALE, **number_of_archetypes(3), **COVARIATES, **SIZE, **MODEL, **BARE},
        SMALL,
    ),
    "conflict": Command(
        conflict,
        {
            **numbers("--seeds", "0-9"), **SCALE, **number_of_archetypes(4), **SIZE, **MODEL, **BARE,
            "--fixed-structure": {"action": "store_true", "help": "draws with edges held fixed as well"},
        },
        SMALL,
    ),
    "interactions": Command(interactions, {**numbers("--seeds", "0-4"), **SCALE, **SIZE, **POSTERIOR}, SMALL),
    "choice": Command(choice, {**numbers("--seeds", "0"), **SIZE}, SMALL),
    "sachs": Command(
        sachs,
        {
            **numbers("--archetypes", "2-9", "numbers of archetypes"), **POSTERIOR, **BARE,
            "--every": {"type": int, "default": 1, "help": "take every so many cells"},
        },
        {"archetypes": [2], "every": 60, "no_baselines": True},
    ),
    "ablations": Command(
        ablations,
        {
            **numbers("--seeds", "0-4"), **number_of_archetypes(4),
            "--designs": {"type": names_of(int), "default": list(range(7)), "help": "of 0-6, with commas"},
        },
        {"seeds": [0], "designs": [3]},
    ),
    "table1": Command(
        table1,
        {
            **BARE,
            "--data": {"type": Path, "default": None, "help": "folder with snareseq_cellmix and sp500"},
            "--every": {"type": int, "default": 1, "help": "take every so many cells of Sachs et al."},
        },
        {"data": None, "every": 60, "no_baselines": True},
    ),
    "peer": Command(
        peer,
        {
            **numbers("--seeds", "0-2"), **number_of_archetypes(3), **COVARIATES, **SIZE,
            "--genes": {"type": int, "default": 50},
            "--peer": {"type": Path, "default": None, "help": "Python of an environment with contextualized-ml"},
        },
        SMALL,
        keeps=False,
    ),
    "growth": Command(
        growth,
        {
            **numbers("--seeds", "0"), **COVARIATES,
            "--cells": {"type": names_of(int), "default": [1000, 10_000]},
            "--genes": {"type": names_of(int), "default": [10, 50, 200]},
        },
        {"cells": [150], "genes": [4]},
    ),
    "large": Command(
        large,
        {
            **numbers("--seeds", "0"), "--cells": {"type": int, "default": 9715},
            "--genes": {"type": int, "default": 784},
        },
        {"cells": 150, "genes": 5},
    ),
}  # fmt: skip

if __name__ == "__main__":
    run(__doc__, COMMANDS)
