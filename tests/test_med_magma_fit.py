"""Fits of MED-MAGMA as things: saving, interrupts, options, knowledge, coverage."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from med_magma_fits import FAMILIES, N, P, data_of, fitted, graphs_close

import embergraph as eg
from embergraph.datasets import simulated_matrix
from embergraph.guides.med_magma import MEDMAGMAGuide
from embergraph.guides.parts.published import published_em
from embergraph.models import (
    MEDMAGMA,
    FixedGraph,
    GaussianGraph,
    LaplaceGraph,
    NormalScales,
    SparseGraph,
    SpectralGraph,
    StudentScales,
)

# --- running ---------------------------------------------------------------------------------------------------------
LOAD = """
import sys, numpy as np, embergraph as eg, xarray as xr
fit = eg.load(sys.argv[1])
data = xr.load_dataset(sys.argv[2])
tree = fit.posterior(data, 20)
posterior = {k: v.values for k, v in tree["posterior"].data_vars.items()}
np.savez(sys.argv[3], **posterior, **{f"g_{k}": v.values for k, v in fit.graphs().data_vars.items()})
"""


def test_a_saved_fit_is_the_same_in_a_new_process(tmp_path: Path) -> None:
    data = data_of(m=2)
    options = {
        "cell_graph": FixedGraph(data["true_cell_precision"].values),
        "gene_graph": SparseGraph(propensity=np.arange(1.0, P + 1)),
    }
    fit = fitted(data, cell_scales=StudentScales(3.0), gene_scales=NormalScales(), **options)
    fit.save(tmp_path / "fit")
    data.drop_vars([n for n in data if n != "expression"]).to_netcdf(tmp_path / "data.nc")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *(str(tmp_path / n) for n in ("fit", "data.nc", "out.npz"))],
        check=True,
    )
    found, tree, graphs = np.load(tmp_path / "out.npz"), fit.posterior(data, 20)["posterior"], fit.graphs()
    for name, value in tree.data_vars.items():
        np.testing.assert_array_equal(found[str(name)], value.values, err_msg=str(name))
    for name, value in graphs.data_vars.items():
        np.testing.assert_array_equal(found[f"g_{name}"], value.values, err_msg=str(name))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_saved_and_loaded(family: str, tmp_path: Path) -> None:
    data = data_of()
    fit = fitted(data, plan={"num_steps": 3}, **FAMILIES[family])
    again = eg.load(fit.save(tmp_path))
    assert type(again) is eg.MEDMAGMAFit
    assert type(again.guide) is MEDMAGMAGuide
    xr.testing.assert_identical(again.graphs(), fit.graphs())
    xr.testing.assert_identical(again.scales(), fit.scales())
    assert float(again.log_density(data)) == float(fit.log_density(data))


def test_other_kinds_of_numbers_give_the_same_fit() -> None:
    counts = np.round(100 * np.random.default_rng(0).normal(size=(N, P)))
    wanted = fitted(xr.Dataset({"expression": (("cell", "gene"), counts)}))
    for dtype in (np.int32, np.int64, np.float32):
        data = xr.Dataset({"expression": (("cell", "gene"), counts.astype(dtype))})
        fit = fitted(data)
        graphs_close(fit.graphs(), wanted.graphs(), 1e-10)
        tree = fit.posterior(data, 10)
        np.testing.assert_allclose(
            tree["posterior"]["log_u"], wanted.posterior(data, 10)["posterior"]["log_u"], atol=1e-10
        )
        assert fit.scales()["log_u"].dtype == np.float64


def test_nothing_is_printed_and_no_random_state_is_touched(capfd: pytest.CaptureFixture[str]) -> None:
    data = data_of(m=2)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before, of_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit = fitted(data)
    fit.posterior(data, 10)
    fit.graphs()
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(of_numpy, np.random.get_state()[1])  # noqa: NPY002
    out = capfd.readouterr()
    assert out.out == ""
    assert out.err == ""
    assert not dict(pyro.get_param_store())
    assert torch.get_default_dtype() == torch.float32


def test_fits_are_deterministic_and_models_are_left_alone() -> None:
    data = data_of()
    model = MEDMAGMA.for_data(data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = (eg.fit(model, data, progress=False, num_steps=8, seed=seed) for seed in (0, 1))
    xr.testing.assert_identical(one.graphs(), other.graphs())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def interrupted_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    update = MEDMAGMAGuide.update

    def breaks(self: Any, model: Any, inputs: Any, now: int) -> float:
        if now == step:
            raise KeyboardInterrupt
        return update(self, model, inputs, now)

    monkeypatch.setattr(MEDMAGMAGuide, "update", breaks)


@pytest.mark.parametrize("family", ["edges", "automatic"])
def test_ctrl_c_keeps_the_graphs_and_a_checkpoint_goes_on(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(m=5)
    options: dict[str, Any] = {"num_steps": 14, "tolerance": 0.0, "progress": False}
    model = MEDMAGMA.for_data(data, **FAMILIES[family])
    whole = eg.fit(model, data, **options)
    short = eg.fit(model, data, **{**options, "num_steps": 11})
    file = tmp_path / "run.ckpt"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 11)
        stopped = eg.fit(model, data, checkpoint=file, **options)
    assert stopped.settings["interrupted"]
    assert file.exists()
    graphs_close(stopped.graphs(), short.graphs(), 0.0)
    assert float(stopped.scales()["log_u_sd"].min()) > 0
    resumed = eg.fit(model, data, checkpoint=file, **options)
    xr.testing.assert_identical(resumed.graphs(), whole.graphs())
    xr.testing.assert_identical(resumed.scales(), whole.scales())
    assert not file.exists()
    with monkeypatch.context() as patch:
        interrupted_at(patch, 11)
        eg.fit(model, data, checkpoint=file, **options)
    with pytest.raises(eg.LoadError):
        eg.fit(model, data_of(m=5, seed=9), checkpoint=file, **options)


def test_acceleration_where_it_can_be_had() -> None:
    data = data_of()
    plans = [{"accelerate": kind, "num_steps": 60, "tolerance": 1e-12} for kind in (None, "squarem")]
    plain, fast = (fitted(data, plan=plan, **FAMILIES["spectral"]) for plan in plans)
    graphs_close(fast.graphs(), plain.graphs(), 1e-4)
    with pytest.raises(eg.DataError, match="accelerate"):
        fitted(data, plan={"accelerate": "squarem"})


def test_the_published_estimator_can_be_asked_for() -> None:
    data = data_of()
    options: dict[str, Any] = {"cell_graph": SpectralGraph(0.0), "gene_graph": SpectralGraph(0.0)}
    fit = eg.fit(MEDMAGMA.for_data(data, **options), data, e_step="published", num_steps=3, progress=False)
    values = torch.as_tensor(eg.matrices.published_quotient(data["expression"].values))
    found = published_em(values, max_iter=3, stop_tol=1e-6)
    wanted = 2 * found.row_precision / (found.row_precision.diagonal().mean() + found.col_precision.diagonal().mean())
    off = ~np.eye(N, dtype=bool)
    np.testing.assert_allclose(fit.graphs()["cell_precision"].values[off], wanted.numpy()[off], rtol=1e-8, atol=1e-10)
    ours = fitted(data, **FAMILIES["spectral"]).graphs()
    assert float(abs(ours["cell_precision"] - fit.graphs()["cell_precision"]).max()) > 0.01
    with pytest.raises(eg.DataError, match="SpectralGraph"):
        fitted(data, plan={"e_step": "published"})


def test_an_overall_prior_is_honoured_or_refused() -> None:
    data = data_of(6, 8)
    free = float(fitted(data).scales()["log_omega"])
    with suppress(eg.DataError):  # refused
        fit = fitted(data, overall_prior=dist.Normal(free - 3.0, 0.01))
        assert float(fit.scales()["log_omega"]) == pytest.approx(free - 3.0, abs=0.1)


# --- knowledge and strength ------------------------------------------------------------------------------------------
def test_knowledge_of_the_graph_helps() -> None:
    gains = []
    for seed in range(4):
        data = data_of(30, 40, seed=seed)
        truth = data["true_cell_precision"].values
        degrees = (truth != 0).sum(0) - 1.0
        plain = fitted(data).graphs(score="probability")
        told = fitted(data, cell_graph=SparseGraph(propensity=degrees)).graphs(score="probability")
        gains.append([eg.undirected_scores.average_precision(g["cell_score"].values, truth) for g in (plain, told)])
    plain, told = np.array(gains).T
    assert (told - plain).mean() > 0.05
    known = np.where(truth != 0, 6.0, -6.0)
    certain = fitted(data, cell_graph=SparseGraph(log_odds=known)).graphs(score="probability")
    assert eg.undirected_scores.average_precision(certain["cell_score"].values, truth) > 0.95


def test_the_scale_of_a_gaussian_prior_counts() -> None:
    data = data_of(20, 25)
    tight, loose = (
        fitted(data, cell_graph=GaussianGraph(s), gene_graph=GaussianGraph(s)).graphs() for s in (0.001, 1.0)
    )
    assert float(abs(tight["cell_partial_correlation"]).max()) < 0.5 * float(
        abs(loose["cell_partial_correlation"]).max()
    )


def test_the_scale_of_a_laplace_prior_counts() -> None:
    data = data_of(20, 25, 5)
    edges = [
        int(
            (
                abs(fitted(data, cell_graph=LaplaceGraph(s), gene_graph=LaplaceGraph(s)).graphs()["cell_precision"])
                > 1e-9
            ).sum()
        )
        for s in (0.02, 0.08)
    ]
    assert 20 <= edges[0] < edges[1] < 400


# --- calibration -----------------------------------------------------------------------------------------------------
def coverage(fit: Any, data: xr.Dataset) -> tuple[int, int]:
    found = fit.scales(interval=0.9)
    inside = total = 0
    for name in ("log_u", "log_v"):
        truth = data[f"true_{name}"].values
        inside += int(((found[f"{name}_lower"].values <= truth) & (truth <= found[f"{name}_upper"].values)).sum())
        total += truth.size
    return inside, total


def test_intervals_of_scales_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 % intervals at 50 x 51, one matrix, eight seeds; without the widening they are too narrow."""
    problems = [simulated_matrix(50, 51, seed=seed) for seed in range(8)]
    plan = {"plan": {"num_steps": 12, "e_step": "laplace"}}
    counts = np.array([coverage(fitted(data, **plan), data) for data in problems]).sum(0)
    with monkeypatch.context() as patch:
        patch.setattr("embergraph.guides.med_magma.variance_inflation", lambda *args: (1.0, 1.0))
        narrow = np.array([coverage(fitted(data, **plan), data) for data in problems]).sum(0)
    with_widening, without = (inside / total for inside, total in (counts, narrow))
    assert 0.82 < with_widening < 0.96
    assert without < with_widening - 0.01
