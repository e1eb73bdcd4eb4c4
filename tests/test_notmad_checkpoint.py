"""Fits of NOTMAD that are stopped after any stage, or in the midst of one, end as if nobody had."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import embergraph as eg
from embergraph.inference import hmc
from embergraph.inference.checkpoint import Checkpoint
from embergraph.inference.run import Run
from embergraph.methods import _notmad_projected as projected
from embergraph.methods import _notmad_search as search
from embergraph.methods import notmad
from embergraph.models import NOTMAD
from embergraph.models.parts.errors import LoadError

QUICK: dict[str, Any] = {
    "num_restarts": 2, "num_steps": 8, "num_orders": 3, "num_warmup": 2, "num_draws": 3, "num_guide_steps": 16,
    "num_bootstrap": 4, "progress": False,
}  # fmt: skip
HMC, MEAN_FIELD = {"posterior": "hmc"}, {"posterior": "mean_field"}


@pytest.fixture(autouse=True)
def short_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FIRST_STEPS": 2, "LATER_STEPS": 2, "NUM_TURNS": 1}.items():
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(notmad, "SVI_EVERY", 5)
    monkeypatch.setattr(projected, "CHUNK_ELEMENTS", 1)  # a pair of draws at a time


class Killed(BaseException):
    """Like signal 9: nothing catches it."""


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    raw = eg.datasets.simulated_notmad(0, num_cells=40, num_genes=3, num_covariates=1)
    return eg.standardize(raw, scale="common")[0]


def own_prior(shape: tuple[int, ...]) -> Any:
    """A prior that no description tells."""
    return dist.Laplace(torch.tensor(0.0), torch.tensor(SCALE[0]))


SCALE = [0.3]
IN_ORDER = {"start 0", "start 1", "finish 0", "finish 1", "search", "order", "orders", "modes"}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "hmc": ({}, HMC, IN_ORDER),
    "mean field": ({"noise": "free"}, MEAN_FIELD, IN_ORDER),
    "bootstrap": ({"order": "projected"}, {"num_restarts": 4}, {"search", "tune", "draws 0", "draws 1"}),
    "relaxed": ({"order": None}, {}, {"search"}),
}


def run(name: str, data: xr.Dataset, checkpoint: Path | None = None, **options: Any) -> eg.NOTMADFit:
    model = NOTMAD.for_data(data, 2, encoder="linear", **RUNS[name][0])
    fit: eg.NOTMADFit = eg.fit(model, data, checkpoint=checkpoint, **{**QUICK, **RUNS[name][1], **options})
    return fit


Whole = Callable[[str], eg.NOTMADFit]


@pytest.fixture(scope="module")
def whole(data: xr.Dataset) -> Whole:
    """Runs that nobody has stopped."""
    return functools.cache(lambda name: run(name, data))


def same(one: eg.NOTMADFit, two: eg.NOTMADFit) -> None:
    """To the bit: draws, their statistics, all numbers of model and guide, history and settings."""
    numbers = []
    for fit in (one, two):
        modules = [fit.model, fit.guide] if fit.guide is not None else [fit.model]
        found = {f"{i} {k}": v for i, module in enumerate(modules) for k, v in module.state_dict().items()}
        if fit.draws is not None:
            found |= fit.draws.values
            found |= {f"stat {k}": torch.as_tensor(v) for k, v in fit.draws.statistics.items()}
        numbers.append(found | {"history": torch.as_tensor(fit.history.values)})
    assert numbers[0].keys() == numbers[1].keys()
    for name, value in numbers[0].items():
        assert torch.equal(value.nan_to_num(-7.0), numbers[1][name].nan_to_num(-7.0)), name
    assert one.settings == two.settings


@contextmanager
def dying(owner: Any, name: str, when: int, *, after: bool = False) -> Iterator[None]:
    """Die at, or after, the `when`-th call of a function."""
    whole, left = getattr(owner, name), [when]

    def last(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Killed
        result = whole(*arguments, **options)
        if left[0] == 0:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, last)
        yield


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_dies_after_every_stage_ends_as_if_it_had_not(
    name: str, data: xr.Dataset, tmp_path: Path, whole: Whole
) -> None:
    path, deaths = tmp_path / "run", 0
    stages: set[str] = set()
    while True:
        try:
            with dying(Checkpoint, "write", 1, after=True):
                fit = run(name, data, path)
            break
        except Killed:
            deaths += 1
            stages |= torch.load(path, weights_only=True)["state"].keys()
    assert stages == RUNS[name][2]
    assert deaths >= len(stages)
    same(fit, whole(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "owner", "what", "when"),
    [
        ("hmc", hmc, "_leapfrog", 4), ("mean field", Run, "_step", 13),
        ("bootstrap", projected._Projected, "_climb", 2),
    ],
)  # fmt: skip
def test_a_run_that_dies_within_a_stage_ends_as_if_it_had_not(
    name: str, owner: Any, what: str, when: int, data: xr.Dataset, tmp_path: Path, whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with pytest.raises(Killed), dying(owner, what, when):
        run(name, data, tmp_path / "run")
    steps = 10 if what == "_step" else 0
    assert (tmp_path / "run.svi").exists() == bool(steps)
    taken: list[int] = []
    step = Run._step
    monkeypatch.setattr(Run, "_step", lambda self, done: (taken.append(1), step(self, done)))
    resumed = run(name, data, tmp_path / "run")
    assert len(taken) == (QUICK["num_guide_steps"] - steps if name == "mean field" else 0)
    same(resumed, whole(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "owner", "what", "when"),
    [
        ("mean field", search._Search, "turn", 2), ("mean field", Run, "_step", 13),
        ("bootstrap", projected._Projected, "_climb", 2), ("relaxed", NOTMAD, "forward", 6),
    ],
)  # fmt: skip
def test_ctrl_c_keeps_the_checkpoint_and_no_stage_that_it_cut_short(
    name: str, owner: Any, what: str, when: int, data: xr.Dataset, tmp_path: Path, whole: Whole,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(f"{__name__}.Killed", KeyboardInterrupt)
    with dying(owner, what, when):
        stopped = run(name, data, tmp_path / "run")
    assert stopped.settings["interrupted"]
    assert (tmp_path / "run").exists() == (name != "relaxed")
    same(run(name, data, tmp_path / "run"), whole(name))
    assert list(tmp_path.iterdir()) == []


def test_a_warm_start_goes_on(data: xr.Dataset, tmp_path: Path, whole: Whole) -> None:
    start, other = whole("hmc"), whole("mean field")
    with pytest.raises(Killed), dying(Checkpoint, "write", 2, after=True):
        run("hmc", data, tmp_path / "run", start=start)
    with pytest.raises(LoadError, match="found a run with"):
        run("hmc", data, tmp_path / "run", start=other)
    same(run("hmc", data, tmp_path / "run", start=start), run("hmc", data, start=start))


def test_checkpoints_of_other_runs_are_refused(
    data: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"

    def fit(data: xr.Dataset = data, **options: Any) -> None:
        given = {"edge_prior": own_prior, "noise": "equal"} | options.pop("model", {})
        eg.fit(
            NOTMAD.for_data(data, 2, encoder="linear", **given), data, checkpoint=path, **{**QUICK, **HMC, **options}
        )

    with pytest.raises(Killed), dying(Checkpoint, "write", 1, after=True):
        fit()
    others: list[dict[str, Any]] = [
        {"seed": 1}, {"num_draws": 7}, {"num_restarts": 3}, {"posterior": "auto"}, {"data": data.isel(cell=slice(39))},
        {"data": data.assign(covariates=data["covariates"] * 2)}, {"model": {"noise": "free"}},
        {"model": {"order": [0, 1, 2]}}, {"model": {"edge_prior": dist.Laplace(0.0, 0.3)}},
        {"model": {"intercept_prior": dist.Normal(0.0, 2.0)}},
    ]  # fmt: skip
    before = path.read_bytes()
    for other in others:
        with pytest.raises(LoadError, match="found a run with"):
            fit(**other)
    monkeypatch.setitem(globals(), "SCALE", [0.4])  # a number that only the prior's own code knows
    with pytest.raises(LoadError, match="found a run with"):
        fit()
    assert path.read_bytes() == before
    monkeypatch.undo()
    fit()
    assert not path.exists()


def test_damaged_and_lost_files_are_refused(data: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run"
    damages: list[Callable[[dict[str, Any]], Any]] = [
        lambda state: state["order"].pop("rng"),
        lambda state: state["search"]["found"].update(points=torch.zeros(2, 5)),
        lambda state: state["search"]["found"].update(model={}),
        lambda state: state["orders"].update(found=None),
        lambda state: state.update(order=[1, 2]),
    ]
    with pytest.raises(Killed), dying(Run, "_step", 13):
        run("mean field", data, path)
    undamaged = path.read_bytes()
    for damage in damages:
        saved = torch.load(path, weights_only=True)
        damage(saved["state"])
        torch.save(saved, path)
        with pytest.raises(LoadError):
            run("mean field", data, path)
        path.write_bytes(undamaged)
    path.unlink()
    with pytest.raises(LoadError, match="found only"):
        run("mean field", data, path)
