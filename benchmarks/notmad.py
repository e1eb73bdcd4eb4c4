"""NOTMAD against baselines and its published successor: recovery, coverage, real cells, cost.

    python benchmarks/notmad.py simulated --seeds 0-9                    # raw scale, K 3, the default plan
    python benchmarks/notmad.py simulated --seeds 0-9 --scale gene       # standardised
    python benchmarks/notmad.py simulated --seeds 0-9 --archetypes 5     # over-specified K
    python benchmarks/notmad.py conflict --seeds 0-9                     # conflicting orders
    python benchmarks/notmad.py interactions --seeds 0-4                 # covariates that interact
    python benchmarks/notmad.py sachs --archetypes 2-9
    python benchmarks/notmad.py ablations --seeds 0-4
    python benchmarks/notmad.py table1 --data FOLDER
    python benchmarks/notmad.py --peer PYTHON --seeds 0-2                # contextualized-ml, in PYTHON's environment
    python benchmarks/notmad.py growth                                   # time and memory, p 10 to 200, n 1e3 and 1e4
    python benchmarks/notmad.py large                                    # n 9715, p 784, K 8

Each command prints Markdown tables with versions and machine; `--json FILE` keeps the numbers as well.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from _notmad_tables import machine, markdown, number_range

COMMANDS = {
    "simulated": "simulated",
    "conflict": "conflict",
    "interactions": "conflict",
    "sachs": "sachs",
    "ablations": "ablations",
    "table1": "table1",
    "peer": "peer",
    "growth": "growth",
    "large": "growth",
}
"""Commands and the modules ``_notmad_*`` that have a function of that name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS, nargs="?", default=None)
    parser.add_argument("--seeds", type=number_range, default=number_range("0-9"))
    parser.add_argument("--scale", choices=["common", "gene"], default="common")
    parser.add_argument("--archetypes", type=number_range, default=None)
    parser.add_argument("--covariates", type=int, default=4)
    parser.add_argument("--genes", type=int, default=50, help="of the comparison with the peer")
    parser.add_argument("--encoder", default="gp")
    parser.add_argument("--posterior", default="auto")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--fixed-structure", action="store_true", help="conflict: draws with edges held fixed as well")
    parser.add_argument("--data", type=Path, default=None, help="folder of the data sets of table1")
    parser.add_argument("--peer", type=Path, default=None, help="Python of an environment with contextualized-ml")
    options = parser.parse_args()
    what = options.what or ("peer" if options.peer else None)
    if what is None:
        parser.error("name a command, or --peer PYTHON")
    tables = getattr(importlib.import_module(f"_notmad_{COMMANDS[what]}"), what)(options)
    print(f"\n{machine()}\n")
    for title, rows in tables.items():
        print(f"\n### {title}\n\n{markdown(rows)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "tables": tables}, indent=1))


if __name__ == "__main__":
    main()
