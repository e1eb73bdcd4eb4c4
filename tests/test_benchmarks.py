"""Every figure has a command that is understood; the commands run at their smallest size."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
TABLES = BENCHMARKS / "README.md"
FRONTS = ("notmad", "med_magma", "environment_vae", "calibration")
LONGEST = 360

PARSE = """
import json, sys
from importlib import import_module
sys.path.insert(0, sys.argv[1])
from _front import parser, run
fronts = {name: import_module(name) for name in sys.argv[2].split(",")}
for front in fronts.values():
    made = parser("", front.COMMANDS)
    made.format_help()
    for command in made._subparsers._group_actions[0].choices.values():
        command.format_help()
for front, arguments in json.load(sys.stdin):
    parser("", fronts[front].COMMANDS).parse_args(arguments)
run("", fronts["environment_vae"].COMMANDS, ["calibration", "--quick", "--json", sys.argv[3]])
print(json.dumps({name: list(front.COMMANDS) for name, front in fronts.items()}))
"""


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """Front and arguments of every ``make bench`` and ``python benchmarks/...`` in a text."""
    found = []
    for line in re.findall(r"make bench ((?:METHOD=\w+ ?)?(?:BENCH=(?:\"[^\"]*\"|\S+))?)", text):
        given = dict(word.split("=", 1) for word in shlex.split(line))
        found.append((given.get("METHOD", "notmad"), shlex.split(given.get("BENCH", "simulated"))))
    for front, arguments in re.findall(r"python benchmarks/(\w+)\.py ([^#\n`]*)", text):
        found.append((front, shlex.split(arguments)))
    return found


def test_commands_are_found():
    text = '`make bench BENCH="sachs --archetypes 9"`\nmake bench METHOD=med_magma BENCH=cost\n'
    assert commands_in(text) == [("notmad", ["sachs", "--archetypes", "9"]), ("med_magma", ["cost"])]
    assert commands_in("python benchmarks/notmad.py large  # long") == [("notmad", ["large"])]


def sections(text: str) -> list[str]:
    return re.split(r"^#{2,3} ", text, flags=re.MULTILINE)


def test_every_table_stands_below_its_command():
    for section in sections(TABLES.read_text()):
        table = re.search(r"^\|(?: ?-+:? ?\|)+$", section, flags=re.MULTILINE)
        if table:
            assert commands_in(section[: table.start()]), f"no command above the table of {section.splitlines()[0]!r}"


def test_tables_have_power():
    assert len(sections("## One\ntext\n### Two\n| a |\n|---|\n")) == 3
    assert sum("|---|" in section for section in sections(TABLES.read_text())) > 15


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], str, Path]:
    """Commands of all fronts, what a quick one printed, and its file."""
    named = [(name, one) for path in (TABLES, ROOT / "README.md") for name, one in commands_in(path.read_text())]
    written = [pair for front in FRONTS for pair in commands_in((BENCHMARKS / f"{front}.py").read_text())]
    file = tmp_path_factory.mktemp("benchmark") / "tables.json"
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(BENCHMARKS), ",".join(FRONTS), str(file)],
        input=json.dumps(named + written),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout, file


def test_commands_of_the_documentation_are_understood(parsed: tuple[dict[str, list[str]], str, Path]):
    assert {"simulated", "sachs", "table1"} <= set(parsed[0]["notmad"])


def test_every_command_has_its_tables(parsed: tuple[dict[str, list[str]], str, Path]):
    shown = {(front, arguments[0]) for front, arguments in commands_in(TABLES.read_text())}
    for front, commands in parsed[0].items():
        assert {(front, command) for command in commands} <= shown


def test_a_command_says_how_its_numbers_came_about(parsed: tuple[dict[str, list[str]], str, Path]):
    _, printed, file = parsed
    kept = json.loads(file.read_text())
    assert kept["command"].endswith("calibration --quick --json " + str(file))
    assert kept["seeds"] == "seeds 0"
    for word in ("torch ", "pyro-ppl ", "embergraph "):
        assert word in kept["versions"]
    assert "cores" in kept["machine"]
    assert len(kept["tables"]) == 2
    for key in ("command", "options", "seeds", "versions", "machine", "took"):
        assert f"* {key}: {kept[key]}" in printed
    assert "numbers" not in kept
    assert "A quick run" in printed


def test_benchmark_files_stay_short():
    for path in BENCHMARKS.glob("*.py"):
        assert len(path.read_text().splitlines()) <= LONGEST, path.name
