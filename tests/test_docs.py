"""Everything that the documentation shows runs: docstrings, the README, the examples."""

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import embergraph

ROOT = Path(__file__).parents[1]
FOLDERS = {"embergraph": "", "models": "models.", "guides": "guides.", "inference": "inference."}
MODULES = sorted(
    f"embergraph.{prefix}" + ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
    for folder, prefix in FOLDERS.items()
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


class Block(NamedTuple):
    """A block of Python in a Markdown file, and the line where it starts."""

    line: int
    run: bool
    code: str


def blocks(markdown: str) -> list[Block]:
    """Blocks fenced as ```python, and as ```python no-run where the user's own files are needed."""
    found = re.finditer(r"^```python(?P<tag>[^\n]*)\n(?P<code>.*?)^```$", markdown, flags=re.MULTILINE | re.DOTALL)
    result = []
    for match in found:
        tag = match["tag"].strip()
        assert tag in ("", "no-run"), f"unknown tag {tag!r}"
        result.append(Block(markdown.count("\n", 0, match.start("code")) + 1, tag == "", match["code"]))
    return result


def run(script: Path, *arguments: str, folder: Path, seconds: float = 240) -> str:
    """Run a script in a folder, warnings of ours being errors, and return what it prints."""
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error:::embergraph"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{script.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_docstring_examples_are_found():
    module = importlib.import_module("embergraph.datasets.simulated")
    assert doctest.testmod(module).attempted > 0
    assert "embergraph.models.parts.errors" in MODULES


def test_readme_runs_from_top_to_bottom(tmp_path: Path):
    found = [block for block in blocks((ROOT / "README.md").read_text()) if block.run]
    assert found, "README.md has no ```python block that can be run"
    script = ""
    for block in found:  # every line at its place in the README, so that a traceback names the right one
        script += "\n" * (block.line - 1 - script.count("\n")) + block.code
    (tmp_path / "README.py").write_text(script)
    run(tmp_path / "README.py", folder=tmp_path)


def test_readme_names_only_what_exists():
    for block in blocks((ROOT / "README.md").read_text()):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "eg":
                assert hasattr(embergraph, node.attr), f"README.md, line {block.line + node.lineno - 1}: eg.{node.attr}"


def test_blocks_are_found():
    text = "# Title\n```python\na = 1\n```\ntext\n```bash\nls\n```\n```python no-run\nb = 2\n```\n"
    assert blocks(text) == [Block(3, True, "a = 1\n"), Block(10, False, "b = 2\n")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path):
    assert run(path, "--fast", folder=tmp_path).strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_in_percent_format(path: Path):
    assert "# %% [markdown]" in path.read_text()
