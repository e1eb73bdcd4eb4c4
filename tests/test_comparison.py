"""Fits and baselines in one table: known densities, when LOO is shown, and what is not compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from environment_fits import counts, two_latents
from med_magma_fits import data_of
from med_magma_fits import fitted as matrix_fit
from notmad_use_cases import data as networks_data
from notmad_use_cases import from_prior
from scipy.stats import norm

import embergraph as eg
from embergraph.baselines import EnvironmentMean, MeanActivation, ZeroGraph
from embergraph.choice import RULE as CHOICE_RULE
from embergraph.comparison import MEANING, compare, comparison_text
from embergraph.held_out import RULE, ranked
from embergraph.inference import Fit, svi

GENES = ["a", "b", "c"]


def model(x=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
    with pyro.plate("cell", 1 if x is None else len(x)):
        pyro.sample("x_seen", dist.Normal(mean, 1.0).to_event(1), obs=x)


def table(n: int, seed: int, mean: float = 0.5, start: int = 0) -> xr.Dataset:
    x = np.random.default_rng(seed).normal(mean, 1.0, (n, 3))
    return xr.Dataset({"x": (("cell", "gene"), x)}, {"gene": GENES, "cell": [f"c{start + i}" for i in range(n)]})


TRAIN, TEST = table(60, 0), table(40, 1, start=100)


def fit_with(train: xr.Dataset = TRAIN, *, shift: float = 0.0, narrow: float = 1.0) -> Fit:
    """The exact posterior, or one that is moved or too narrow."""
    n = train.sizes["cell"]
    loc, sd = train["x"].values.sum(0) / (n + 1) + shift, narrow * (n + 1) ** -0.5

    def guide(x=None):
        where = pyro.param("loc", torch.tensor(loc))
        pyro.sample("mean", dist.Normal(where, torch.full((3,), sd).double()).to_event(1))

    return svi(model, guide, train, num_steps=1, learning_rate=1e-12, progress=False)


def point_of(train: xr.Dataset) -> Fit:
    def guide(x=None):
        pyro.sample("mean", dist.Delta(pyro.param("loc", torch.tensor(train["x"].values.mean(0)))).to_event(1))

    return svi(model, guide, train, num_steps=1, learning_rate=1e-12, progress=False)


@pytest.fixture(scope="module")
def fits() -> dict[str, Fit]:
    return {"exact": fit_with(), "moved": fit_with(shift=0.7), "narrow": fit_with(narrow=0.2), "point": point_of(TRAIN)}


@pytest.fixture(scope="module")
def found(fits: dict[str, Fit]) -> xr.Dataset:
    # Normal with the law of the data itself
    truth = xr.DataArray(norm(0.5, 1.0).logpdf(TEST["x"].values).sum(1), dims="cell")
    return compare(fits, TRAIN, TEST, baselines={"truth": truth}, num_samples=2000, progress=False)


def test_held_out_densities_are_those_of_the_fits(found: xr.Dataset, fits: dict[str, Fit]) -> None:
    assert set(found.data_vars) == set(MEANING)
    assert found.attrs["num_test_cells"] == 40
    centre = TRAIN["x"].values.sum(0) / 61
    x = TEST["x"].values
    wanted = norm(centre, np.sqrt(1 + 1 / 61)).logpdf(x)
    row = found.sel(model="exact")
    assert float(row["log_density"]) == pytest.approx(wanted.sum(1).mean(), abs=0.01)
    assert float(row["log_density_se"]) == pytest.approx(wanted.sum(1).std(ddof=1) / 40**0.5, rel=0.02)
    assert float(row["entry_log_density"]) == pytest.approx(wanted.mean(), abs=0.005), "genes are independent"
    assert abs(float(row["difference"])) < 3 * float(row["difference_se"]), "the truth is not far"
    moved = found.sel(model="moved")
    away = norm(centre + 0.7, np.sqrt(1 + 1 / 61)).logpdf(x)
    density = {name: fit.log_density(TEST, 2000).values for name, fit in fits.items()}
    assert float(moved["log_density"]) == pytest.approx(away.sum(1).mean(), abs=0.05)
    assert not bool(moved["tied"])
    best = found.attrs["best"]
    gap = density["moved"] - density[best] if best in density else None
    if gap is not None:
        assert float(moved["difference"]) == pytest.approx(gap.mean())
        assert float(moved["difference_se"]) == pytest.approx(gap.std(ddof=1) / 40**0.5)
    assert found.attrs["rule"] == RULE == CHOICE_RULE
    again = ranked(density)
    assert again["moved"]["log_density"] == pytest.approx(float(moved["log_density"]))


def test_loo_is_shown_only_where_both_khats_allow_it(found: xr.Dataset, fits: dict[str, Fit]) -> None:
    loo = fits["exact"].loo(TRAIN, 2000)
    row = found.sel(model="exact")
    assert float(row["loo"]) == pytest.approx(float(loo["elpd_loo"]) / 60)
    assert float(row["loo_se"]) == pytest.approx(float(loo["se"]) / 60)
    assert float(row["share_khat_bad"]) == 0.0
    assert float(row["guide_khat"]) < 0.5
    assert row["note"].item() == ""
    narrow = found.sel(model="narrow")
    assert float(narrow["guide_khat"]) > 0.7
    assert np.isnan(narrow["loo"])
    assert "LOO left out: the k-hat of the guide" in narrow["note"].item()
    point = found.sel(model="point")
    assert bool(point["point_estimate"])
    assert np.isnan(point["loo"])
    assert np.isnan(point["guide_khat"])
    assert float(found.sel(model="moved")["guide_khat"]) > 0.7 or np.isfinite(found.sel(model="moved")["loo"])
    few = table(8, 3)
    few["x"][0] += 12.0  # cells that make their own posterior
    odd = compare({"a": fit_with(few), "b": fit_with(few)}, few, TEST, entries=False, progress=False).sel(model="a")
    assert float(odd["share_khat_bad"]) == pytest.approx(1 / 8)
    assert np.isnan(odd["loo"])
    assert "12 % of the cells" in odd["note"].item()
    assert np.isnan(odd["entry_log_density"])


def test_as_text(found: xr.Dataset) -> None:
    text = comparison_text(found)
    lines = text.splitlines()
    order = found["model"].values[np.argsort(-found["log_density"].values)]
    assert [line.split()[0] for line in lines[1:6]] == order.tolist()
    assert "best" in lines[1]
    assert "point (point)" in text
    assert "truth (baseline)" in text
    assert "mse" not in lines[0], "columns without numbers are not shown"
    assert "narrow: LOO left out" in text
    assert "40 held-out rows of dim cell" in text


def test_networks_stand_beside_baselines() -> None:
    train = networks_data(60, scale="gene")
    test = train.isel(cell=slice(0, 12)).assign_coords(cell=[f"new{i}" for i in range(12)])
    fits = {"three": from_prior(train), "one": from_prior(train, 1)}
    found = compare(fits, train, test, baselines={"empty": ZeroGraph(), "mean": MeanActivation()}, progress=False)
    networks = ZeroGraph().fit(train).networks(test)
    row = found.sel(model="empty")
    assert float(row["log_density"]) == pytest.approx(eg.metrics.gaussian_log_density(networks, test))
    assert float(row["mse"]) == pytest.approx(eg.metrics.held_out_mse(networks, test))
    assert float(row["entry_log_density"]) == pytest.approx(float(row["log_density"]) / 4), "no edges"
    assert bool(row["baseline"])
    three = fits["three"].entry_log_density(test)["log_density"]
    assert float(found["entry_log_density"].sel(model="three")) == pytest.approx(float(three.mean()))
    assert np.isfinite(found["mse"].sel(model="three"))
    assert float(found["log_density"].sel(model="mean")) == pytest.approx(
        float(MeanActivation().fit(train).log_density(test).mean())
    )


def test_entries_of_baselines_are_conditional_normals() -> None:
    train = networks_data(60)
    networks = eg.baselines.Population().fit(train).networks(train)
    found = eg.metrics.entry_log_densities(networks, train)
    W, sigma = networks["network"].values[0], networks["sigma"].values[0]
    precision = (np.eye(4) - W) @ np.diag(sigma**-2.0) @ (np.eye(4) - W).T
    x = train["expression"].values[0]
    mean = networks["intercept"].values[0] @ np.linalg.inv(np.eye(4) - W)
    for gene in range(4):
        centre = x[gene] - (x - mean) @ precision[:, gene] / precision[gene, gene]
        assert found[0, gene] == pytest.approx(norm(centre, precision[gene, gene] ** -0.5).logpdf(x[gene]))


def test_other_methods() -> None:
    cells = two_latents(num_cells=40)
    train, test = eg.random_split(cells, within="environment")
    fits = {f"{d}": eg.fit(eg.models.EnvironmentVAE.for_data(train, d), train, progress=False) for d in (1, 2)}
    found = compare(fits, train, test, baselines={"means": EnvironmentMean()}, progress=False)
    assert found.attrs["best"] == "2"
    assert np.isfinite(found["entry_log_density"].values[:2]).all()
    screen = counts(num_cells=10)
    count_fit = eg.fit(eg.models.EnvironmentVAE.for_data(screen, 2), screen, num_steps=10, progress=False)
    with pytest.raises(eg.DataError, match="probabilities of counts and densities of real numbers"):
        compare({"a": count_fit}, screen, counts(1, num_cells=3), baselines={"mean": MeanActivation()})
    matrices = data_of(m=4)
    train, test = matrices.isel(replicate=slice(0, 2)), matrices.isel(replicate=slice(2, 4))
    pair = {"sum": matrix_fit(train), "one axis": matrix_fit(train, structure="independent_cells")}
    found = compare(pair, train, test, progress=False)
    assert found.attrs["rows"] == "replicate"
    assert np.isfinite(found["difference"]).all()
    assert "entries left out" in found["note"].values[0]
    single = data_of()
    with pytest.raises(eg.SchemaError, match="fits\\['one'\\]: found MEDMAGMA"):
        compare({"one": matrix_fit(single), "two": matrix_fit(single)}, single, single)


def test_training_cells_are_recognised(fits: dict[str, Fit]) -> None:
    other = table(60, 7)
    with pytest.raises(eg.DataError, match="data: found other data than"):
        compare(fits, other, TEST, progress=False)
    with pytest.raises(eg.DataError, match="data: found other data than"):
        compare(fits, TRAIN.assign(x=TRAIN["x"] + 1.0), TEST, progress=False)


def test_what_cannot_be_compared_is_refused(fits: dict[str, Fit]) -> None:
    two = {name: fits[name] for name in ("exact", "moved")}
    relaxed = from_prior()
    relaxed.model.form = "relaxed"
    same = TRAIN.isel(cell=slice(0, 3))
    renamed = TEST.assign_coords(gene=["a", "b", "d"])
    given: list[tuple[Any, Any, Any, Any, Any, str]] = [
        ({"exact": fits["exact"]}, TRAIN, TEST, {}, eg.DataError, "wanted two models"),
        ([fits["exact"]], TRAIN, TEST, {}, eg.DataError, "fits: found list"),
        ({"a": fits["exact"], "b": print}, TRAIN, TEST, {}, eg.DataError, "fits\\['b'\\]: found builtin"),
        (two, TRAIN, same, {}, eg.DataError, "test: found 3 of the training data"),
        (two, TRAIN.isel(cell=slice(0, 50)), TEST, {}, eg.DataError, "data: found 50 along 'cell'; wanted the 60"),
        (two, TRAIN, renamed, {}, eg.SchemaError, "fits\\['exact'\\], test: x: found others along 'gene'"),
        (two, TRAIN, TEST, {"exact": ZeroGraph()}, eg.DataError, "'exact', which is a fit too"),
        (two, TRAIN, TEST, {"odd": print}, eg.DataError, "baselines\\['odd'\\]: found builtin"),
        (
            two,
            TRAIN,
            TEST,
            {"short": xr.DataArray(np.zeros(3), dims="cell")},
            eg.DataError,
            "short: found densities of 3",
        ),
        (two, TRAIN, TEST, {"nan": xr.DataArray([np.nan], dims="cell")}, eg.DataError, "or not finite"),
        (two, "data", TEST, {}, eg.DataError, "data: found str"),
    ]
    for fitted, data, test, baselines, error, words in given:
        with pytest.raises(error, match=words):
            compare(fitted, data, test, baselines=baselines, entries=False, loo=False, progress=False)
    train = networks_data(60, scale="gene")
    energy = from_prior(train)
    energy.model = eg.models.NOTMAD.for_data(train, 3, order=None)
    with pytest.raises(eg.SchemaError, match="unnormalised"):
        compare({"energy": energy, "other": from_prior(train)}, train, train)


def test_ctrl_c_returns_what_is_done(fits: dict[str, Fit], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    three = {name: fit_with() for name in ("a", "b", "c")}
    monkeypatch.setattr(three["c"], "log_density", interrupted, raising=False)
    found = compare(three, TRAIN, TEST, entries=False, loo=False, progress=False)
    assert list(found["model"].values) == ["a", "b"]
    assert found.attrs["interrupted"] == 1
    monkeypatch.setattr(three["b"], "log_density", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        compare(three, TRAIN, TEST, entries=False, loo=False, progress=False)
