"""Environment VAE against baselines: recovery, calibration, two real screens, and size.

    python benchmarks/environment_vae.py two_latents --keep two.jsonl        # --seeds, --variants
    python benchmarks/environment_vae.py counts --keep counts.jsonl          # --seeds, --models, --tasks, --permuted
    python benchmarks/environment_vae.py published --keep published.jsonl
    python benchmarks/environment_vae.py calibration --keep calibration.jsonl
    python benchmarks/environment_vae.py shift_sizes --seeds 600-602 --default
    python benchmarks/environment_vae.py tap_seq --data ../shared/data/perturbation --keep tap_seq.jsonl
    python benchmarks/environment_vae.py l1000 --data ../shared/data/perturbation --keep l1000.jsonl
    python benchmarks/environment_vae.py overhead                            # of a step, beside a loop by hand
    python benchmarks/environment_vae.py large --cells 10000,100000

`benchmarks/README.md` has the tables, and what each command takes.
"""

from __future__ import annotations

from pathlib import Path

from _environment_vae_calibration import CASES, calibration
from _environment_vae_counts import MODELS, TASKS, counts
from _environment_vae_l1000 import compounds
from _environment_vae_large import large
from _environment_vae_overhead import LAWS, overhead
from _environment_vae_published import FIGURES, published
from _environment_vae_published import MODELS as PUBLISHED
from _environment_vae_shift_sizes import shift_sizes
from _environment_vae_tap_seq import halved_screen
from _environment_vae_two_latents import VARIANTS, two_latents
from _front import Command, Options, named, numbers, run
from _tables import REPOSITORY, names_of

DATA: Options = {"--data": {"type": Path, "default": REPOSITORY.parent / "shared" / "data" / "perturbation"}}
STEPS: Options = {"--steps": {"type": int, "default": None, "help": "of a fit; as many as the plan says if left out"}}

COMMANDS = {
    "two_latents": Command(
        two_latents,
        {**numbers("--seeds", "0-5"), **named("--variants", VARIANTS)},
        {"seeds": [0], "variants": ["50 / 5000 / 5000 cells"]},
    ),
    "counts": Command(
        counts,
        {
            **numbers("--seeds", "0-5"), **named("--models", MODELS), **named("--tasks", TASKS, ["counts"]), **STEPS,
            **numbers("--permuted", "0-1", "seeds with permuted labels"),
        },
        {
            "seeds": [0], "models": ["default", "sVAE+ exact masks"], "tasks": ["30 perturbations"], "permuted": [],
            "steps": 20,
        },
    ),
    "published": Command(
        published,
        {
            **numbers("--seeds", "0-5"), **named("--models", PUBLISHED),
            "--figures": {"type": int, "default": len(FIGURES), "help": "so many of the paper's figures"},
        },
        {"seeds": [0], "models": ["default by EM"], "figures": 1},
    ),
    "calibration": Command(
        calibration,
        {**numbers("--seeds", "0-19"), **named("--cases", CASES)},
        {"seeds": [0], "cases": ["60 cells, noise 1"]},
    ),
    "shift_sizes": Command(
        shift_sizes,
        {
            **numbers("--seeds", "500-502"), **STEPS,
            "--default": {"action": "store_true", "help": "the sizes of the counts task"},
        },
        {"seeds": [500], "steps": 20},
    ),
    "tap_seq": Command(
        halved_screen,
        {
            **DATA, **numbers("--splits", "0-2"), **STEPS,
            "--every": {"type": int, "default": 1, "help": "take every so many cells"},
        },
        {"splits": [0], "steps": 20, "every": 8},
    ),
    "l1000": Command(compounds, {**DATA, **numbers("--splits", "0-9"), **STEPS}, {"splits": [0], "steps": 60}),
    "overhead": Command(
        overhead,
        {
            **named("--laws", LAWS),
            "--cells": {"type": int, "default": 4000},
            "--genes": {"type": int, "default": 978},
            "--blocks": {"type": int, "default": 60},
            "--steps": {"type": int, "default": 20, "help": "steps of a block"},
        },
        {"cells": 200, "genes": 30, "blocks": 2, "steps": 2},
        keeps=False,
    ),
    "large": Command(
        large,
        {
            "--cells": {"type": names_of(int), "default": [10_000, 100_000]},
            "--genes": {"type": int, "default": 1000},
            "--latents": {"type": int, "default": 20},
            **STEPS,
        },
        {"cells": [1000], "genes": 50, "latents": 5, "steps": 20},
    ),
}  # fmt: skip

if __name__ == "__main__":
    run(__doc__, COMMANDS)
