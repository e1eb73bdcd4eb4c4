"""MED-MAGMA against baselines: recovery, calibration, real cells, cost and growth.

    python benchmarks/med_magma.py synthetic --keep synthetic.jsonl      # --seeds, --sizes, --matrices, --graphs, ...
    python benchmarks/med_magma.py calibration --keep calibration.jsonl
    python benchmarks/med_magma.py real --data ../shared/data/scrna --keep real.jsonl
    python benchmarks/med_magma.py cost --peer-python /path/to/environment/with/GmGM/bin/python
    python benchmarks/med_magma.py growth
    python benchmarks/med_magma.py large --size 5000

Each command prints Markdown tables with its own line, versions and machine. `--keep FILE` stores every measured row,
and goes on from there when run again (delete the file after a change of the library). `--json FILE` keeps the tables.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from _med_magma_calibration import calibration
from _med_magma_cost import cost
from _med_magma_growth import growth, large
from _med_magma_real import real
from _med_magma_synthetic import synthetic
from _med_magma_tables import GRAPHS, SIZES, machine, markdown, names_of, number_range

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = {
    "synthetic": synthetic, "calibration": calibration, "real": real, "cost": cost, "growth": growth, "large": large,
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
    for name, seeds in (("synthetic", "0-4"), ("calibration", "0-9")):
        sub[name].add_argument("--seeds", type=number_range, default=number_range(seeds))
        sub[name].add_argument("--sizes", type=names_of(), default=list(SIZES))
        sub[name].add_argument("--graphs", type=names_of(), default=list(GRAPHS))
    add_synthetic(sub["synthetic"])
    sub["calibration"].add_argument("--matrices", type=names_of(int), default=[1, 5])
    sub["calibration"].add_argument("--prior-seeds", type=number_range, default=number_range("0-9"))
    add_real(sub["real"])
    sub["cost"].add_argument("--peer-python", default=None, help="Python of an environment with GmGM")
    sub["cost"].add_argument("--sizes", type=names_of(), default=list(SIZES))
    sub["cost"].add_argument("--repeats", type=int, default=5)
    sub["growth"].add_argument("--sizes", type=names_of(int), default=[50, 100, 200, 500, 1000, 2000])
    sub["growth"].add_argument("--sparse-up-to", type=int, default=500)
    sub["large"].add_argument("--size", type=int, default=5000)
    sub["large"].add_argument("--steps", type=int, default=3)
    return made


def add_synthetic(command: argparse.ArgumentParser) -> None:
    command.add_argument("--matrices", type=names_of(int), default=[1, 5, 20])
    command.add_argument("--signs", type=names_of(), default=["positive", "random"])
    command.add_argument("--noise", type=names_of(float), default=[0.0, 0.5, 1.0])
    command.add_argument("--degrees", type=names_of(int), default=[1], help="m at which degrees are told as well")
    command.add_argument(
        "--invariance", type=names_of(int), default=[1, 5], help="m at which levels of noise are compared"
    )
    command.add_argument("--published", type=int, default=1, help="seeds on which the published estimator runs (m 1)")


def add_real(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "scrna")
    command.add_argument("--sets", type=names_of(), default=[])
    command.add_argument("--published-up-to", type=int, default=300, help="cells above which it is left out")
    command.add_argument("--all-genes", action="store_true", help="all genes of PBMC, not about as many as cells")


if __name__ == "__main__":
    main()
