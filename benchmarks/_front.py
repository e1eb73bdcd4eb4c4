"""The command line of a benchmark: its commands, what they print around their tables, and peers in other environments.

A front lists its commands and calls `run`. Every command prints the line that was typed, all its options, seeds,
versions and machine, how long it took, then its tables; `--json FILE` keeps all that, `--keep FILE` every measured row,
to go on from, and `--quick` runs the smallest sizes through the same code, whose numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _tables import (
    Results,
    Row,
    Tables,
    file_to_write,
    machine,
    markdown,
    names_among,
    number_range,
    peak_mib,
    spelled,
    versions,
)

Options = dict[str, dict[str, Any]]
"""Flags of a command and what `add_argument` is given for them."""

ALONE = {**os.environ, "PYTHONPATH": ""}
"""What a Python of another environment sees."""
OWN = ("what", "json", "keep", "quick", "results")


@dataclass(frozen=True)
class Command:
    """One command of a front.

    Attributes
    ----------
    run
        Makes the tables; its docstring says what they show.
    options
        Flags of its own.
    quick
        Options of the smallest run that still goes through everything.
    seed
        What is said of seeds where there is no option for them.
    keeps
        Whether rows may be kept and read again; not where methods are timed side by side.
    """

    run: Callable[[argparse.Namespace], Tables]
    options: Options = field(default_factory=dict)
    quick: Row = field(default_factory=dict)
    seed: str = "0 throughout"
    keeps: bool = True


def numbers(flag: str, default: str, about: str = "as 0-9 or 3") -> Options:
    """A flag that takes ``0-9``."""
    return {flag: {"type": number_range, "default": number_range(default), "help": about}}


def named(flag: str, names: Iterable[str], default: list[str] | None = None) -> Options:
    """A flag that takes some of these names; all of them if it is left out, or `default`."""
    about = f"some of {'; '.join(names)}, with commas".replace("%", "%%")
    return {flag: {"type": names_among(names), "default": list(names) if default is None else default, "help": about}}


def run(doc: str, commands: Mapping[str, Command], arguments: list[str] | None = None) -> None:
    """Parse, run one command and print its tables."""
    options = parser(doc, commands).parse_args(arguments)
    command = commands[options.what]
    if options.quick:
        vars(options).update(command.quick)
    options.results = Results(options.keep)
    start, busy = time.perf_counter(), time.process_time()
    tables = command.run(options)
    about = {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(arguments or sys.argv[1:])}",
        "options": spelled_out(options),
        "seeds": seeds_of(options, command),
        "versions": versions(),
        "machine": machine(),
        "took": f"{time.perf_counter() - start:.0f} s ({time.process_time() - busy:.0f} s of this process's "
        f"processor time), peak memory of this process {peak_mib():.0f} MiB",
    }
    if options.results.origin():
        about["kept"] = options.results.origin()
    print("\n" + "\n".join(f"* {name}: {text}" for name, text in about.items()))
    for title, rows in tables.items():
        print(f"\n### {title}\n\n{markdown(rows)}")
    if options.quick:
        print("\nA quick run: that it ends is all that it shows.")
    if options.json:
        options.json.write_text(json.dumps({**about, "quick": options.quick, "tables": tables}, indent=1, default=str))


def parser(doc: str, commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """All commands with their flags."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = made.add_subparsers(dest="what", required=True)
    for name, command in commands.items():
        about = command.run.__doc__ or ""
        one = sub.add_parser(name, help=about.replace("%", "%%"), description=about)
        one.add_argument(
            "--json", type=file_to_write, default=None, help="file for the tables and what was said of them"
        )
        either = one.add_mutually_exclusive_group()
        either.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs; no results")
        if command.keeps:
            either.add_argument("--keep", type=file_to_write, default=None, help="file of measured rows, to go on from")
        else:
            one.set_defaults(keep=None)
        for flag, how in command.options.items():
            one.add_argument(flag, **how)
    return made


def spelled_out(options: argparse.Namespace) -> str:
    """All options of a command, given or not; of paths only whether they are given."""
    said = []
    for name, value in vars(options).items():
        if name not in OWN and value is not None:
            text = spelled(value) if isinstance(value, list) else "given" if isinstance(value, Path) else str(value)
            said.append(f"{name.replace('_', '-')} {text or 'all'}")
    return "; ".join(said) or "none"


def seeds_of(options: argparse.Namespace, command: Command) -> str:
    given = {n: v for n, v in vars(options).items() if n == "seed" or n.endswith(("seeds", "splits", "permuted"))}
    said = [f"{n.replace('_', ' ')} {spelled(v if isinstance(v, list) else [v]) or 'none'}" for n, v in given.items()]
    return "; ".join(said) or command.seed


@dataclass(frozen=True)
class Peer:
    """A published package that runs in an environment of its own and is never a dependency.

    Attributes
    ----------
    package
        Name of the distribution.
    module
        What is imported.
    install
        How to install it, in words.
    """

    package: str
    module: str
    install: str

    def is_there(self, python: Path | None) -> bool:
        """Whether that Python can import it; if not, says what to install."""
        why = "no --peer PYTHON is given"
        if python is not None:
            try:
                call = [str(python), "-c", f"import {self.module}"]
                found = subprocess.run(call, capture_output=True, text=True, check=False, env=ALONE)
            except OSError as error:
                why = f"{python} does not start ({error.strerror})"
            else:
                if not found.returncode:
                    return True
                why = f"{python} cannot import {self.module} ({(found.stderr.strip().splitlines() or ['?'])[-1]})"
        print(f"{self.package} is left out: {why}. {self.install}", flush=True)
        return False


def is_installed(module: str, install: str) -> bool:
    """Whether a package of this environment is there; if not, says what to install."""
    try:
        __import__(module)
    except ImportError:
        print(f"left out: no {module}. {install}", flush=True)
        return False
    return True


def has_files(folder: Path, names: tuple[str, ...], source: str) -> bool:
    """Whether data files are there; if not, says which are wanted, and where they come from."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        print(f"left out: {folder} has no {', '.join(missing)}; give the folder by --data FOLDER. {source}", flush=True)
    return not missing
