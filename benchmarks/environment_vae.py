"""Environment VAE against baselines: recovery, calibration, two real screens, and size.

    python benchmarks/environment_vae.py two_latents --keep two.jsonl        # --seeds, --variants
    python benchmarks/environment_vae.py counts --keep counts.jsonl          # --seeds, --models, --tasks, --permuted
    python benchmarks/environment_vae.py published --keep published.jsonl
    python benchmarks/environment_vae.py calibration --keep calibration.jsonl
    python benchmarks/environment_vae.py shift_sizes --seeds 600-602 --default
    python benchmarks/environment_vae.py tap_seq --data ../shared/data/perturbation --keep tap_seq.jsonl
    python benchmarks/environment_vae.py l1000 --data ../shared/data/perturbation --keep l1000.jsonl
    python benchmarks/environment_vae.py large --cells 10000,100000

Each command prints Markdown tables with its own line, versions and machine. `--keep FILE` stores every measured row,
and goes on from there when run again (delete the file after a change of the library). `--json FILE` keeps the tables.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from _environment_vae_calibration import calibration
from _environment_vae_counts import MODELS, TASKS, counts
from _environment_vae_l1000 import compounds
from _environment_vae_large import large
from _environment_vae_published import published
from _environment_vae_shift_sizes import shift_sizes
from _environment_vae_tap_seq import halved_screen
from _environment_vae_two_latents import two_latents
from _med_magma_tables import machine, markdown, names_of, number_range

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = {
    "two_latents": two_latents, "counts": counts, "published": published, "calibration": calibration,
    "shift_sizes": shift_sizes, "tap_seq": halved_screen, "l1000": compounds, "large": large,
}  # fmt: skip


def main() -> None:
    options = parser().parse_args()
    tables = RUNS[options.what](options)
    print(f"\n`python {shlex.join(sys.argv)}`\n\n{machine()}\n")
    for title, rows in tables.items():
        print(f"\n### {title}\n\n{markdown(rows)}")
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "machine": machine(), "tables": tables}, indent=1))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="what", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, default=None, help="file for the tables")
    common.add_argument("--keep", type=Path, default=None, help="file of measured rows, to go on from")
    sub = {name: commands.add_parser(name, parents=[common], help=run.__doc__) for name, run in RUNS.items()}
    for name, seeds in (("two_latents", "0-5"), ("counts", "0-5"), ("published", "0-5"), ("calibration", "0-19"),
                        ("shift_sizes", "500-502")):  # fmt: skip
        sub[name].add_argument("--seeds", type=number_range, default=number_range(seeds))
    for name, splits in (("tap_seq", "0-2"), ("l1000", "0-9")):
        sub[name].add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "perturbation")
        sub[name].add_argument("--splits", type=number_range, default=number_range(splits))
    sub["shift_sizes"].add_argument("--default", action="store_true", help="the sizes of the counts task")
    sub["two_latents"].add_argument("--variants", type=names_of(), default=[])
    sub["published"].add_argument("--models", type=names_of(), default=[])
    sub["counts"].add_argument("--models", type=names_of(), default=list(MODELS))
    sub["counts"].add_argument("--tasks", type=names_of(), default=["counts"], help=f"of {list(TASKS)}")
    sub["counts"].add_argument("--permuted", type=number_range, default=number_range("0-1"), help="seeds")
    sub["counts"].add_argument("--steps", type=int, default=None)
    sub["large"].add_argument("--cells", type=names_of(int), default=[10_000, 100_000])
    sub["large"].add_argument("--genes", type=int, default=1000)
    sub["large"].add_argument("--latents", type=int, default=20)
    return made


if __name__ == "__main__":
    main()
