"""What is installed, what importing does, and which way imports point."""

import ast
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"models": "embergraph.models", "guides": "embergraph.guides", "inference": "embergraph.inference"}
FILES = ROOT / "embergraph" / "datasets" / "files"
LONGEST = 360


def sources() -> dict[str, Path]:
    """Modules of the package by the name that they are imported by."""
    found = {}
    for folder, package in {"embergraph": "embergraph", **FOLDERS}.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


SOURCES = sources()
PACKAGES = {name for name, path in SOURCES.items() if path.name == "__init__.py"}


def test_every_package_is_listed():
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == PACKAGES
    folders = {path.parent for path in SOURCES.values()}
    assert folders == {path.parent for path in SOURCES.values() if path.name == "__init__.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy, since building leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("wheel")
    for folder in ("embergraph", *FOLDERS):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("tests", "examples"):  # must not get into the wheel
        (copy / folder).mkdir()
        (copy / folder / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next((copy / "dist").glob("*.whl")))


def test_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile):
    names = set(wheel.namelist())
    modules = {
        name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        for name, path in SOURCES.items()
    }
    data = {f"embergraph/datasets/files/{path.name}" for path in FILES.iterdir()}
    info = f"embergraph-{CONFIG['project']['version']}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == modules | data | {"embergraph/py.typed"}
    assert info + "licenses/LICENSE" in names


def test_wheel_works_away_from_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path)
    code = (
        "import embergraph as eg; print(eg.__file__, eg.inference.__file__, eg.models.__file__);"
        "assert len(eg.__path__) == 1; eg.datasets.sachs()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(file.startswith(str(tmp_path / "embergraph")) for file in done.stdout.split())


def test_version_is_the_same_everywhere():
    wanted = CONFIG["project"]["version"]
    assert version("embergraph") == wanted
    assert f"## {wanted}" in (ROOT / "CHANGELOG.md").read_text()


def test_torch_is_pinned_for_the_checks_only():
    pins = (ROOT / "constraints.txt").read_text().split()
    assert "torch==2.13.0" in pins
    assert "torch>=2.4" in CONFIG["project"]["dependencies"]


def test_every_data_file_has_its_licence_beside_it():
    licences = {path.name: path.read_text() for path in FILES.glob("LICENSE-*.txt")}
    for path in FILES.iterdir():
        if path.name not in licences:
            assert any(path.name in text for text in licences.values()), f"{path.name} is in no LICENSE-*.txt"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_files_stay_short(name: str):
    assert len(SOURCES[name].read_text().splitlines()) <= LONGEST


IMPORT = """
import json, sys
import numpy, pyro, torch
from torch.distributions import Distribution

def state():
    return [
        torch.get_rng_state().tolist(),
        str(numpy.random.get_state()),
        str(torch.get_default_dtype()),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        Distribution._validate_args,
        str(pyro.settings.get()),
        list(pyro.get_param_store()),
    ]

before = state()
import embergraph
assert state() == before, "importing embergraph changed global state"
print(json.dumps(sorted(sys.modules)))
"""


def test_import_does_no_work():
    done = subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "embergraph.plots" in loaded
    assert not loaded & {"anndata", "arviz", "jaxtyping", "matplotlib", "matplotlib.pyplot"}


RANKS = ("embergraph.models.parts", "embergraph.models", "embergraph.guides", "embergraph.inference", "embergraph")


def rank(module: str) -> int:
    return next(i for i, package in enumerate(RANKS) if f"{module}.".startswith(f"{package}."))


def imported(name: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in it, also for type checking."""
    package = name.split(".") if SOURCES[name].name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "embergraph"}
            assert not {alias.name.split(".")[0] for alias in node.names} & FOLDERS.keys()
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            assert source.split(".")[0] not in FOLDERS
            if source.split(".")[0] == "embergraph":
                nested = {f"{source}.{alias.name}" for alias in node.names} & SOURCES.keys()
                found |= nested or {source}
    return found


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_point_one_way(name: str):
    for other in imported(name):
        assert rank(other) <= rank(name), f"{name} imports {other}"


def test_routines_know_no_method():
    allowed = ("embergraph.inference.", "embergraph.models.parts.", "embergraph.models.schema.")
    for name in SOURCES:
        if name.startswith("embergraph.inference"):
            strangers = [other for other in imported(name) if not f"{other}.".startswith(allowed)]
            assert not strangers, f"{name} imports {strangers}"


def test_import_rules_have_power():
    assert imported("embergraph.guides.notmad") >= {"embergraph.models.notmad", "embergraph.models.parts.errors"}
    assert rank("embergraph.models.parts.errors") == 0
    assert rank("embergraph.data") > rank("embergraph.inference.fit") > rank("embergraph.models.notmad")
