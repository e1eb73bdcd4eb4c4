"""Predictive checks: right models pass, wrong ones are caught by the statistic meant for them, any fit is served."""

from __future__ import annotations

import json
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from environment_fits import counts
from med_magma_fits import data_of
from med_magma_fits import fitted as matrix_fit
from notmad_use_cases import data as networks_data
from notmad_use_cases import from_prior
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy import stats

import embergraph as eg
from embergraph.criticism import STATISTICS, criticism_text, predictive_check
from embergraph.criticism_plots import all_statistics, observed_against_replicated, statistics_overview
from embergraph.inference import Fit, StoredDraws
from embergraph.inference.inputs import Template
from embergraph.inference.plain import schema_of

matplotlib.use("Agg")
N, P, S = 150, 6, 100
GENES = [f"g{i}" for i in range(P)]


def normal_model(x=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(P).double(), 10.0).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(torch.zeros(P).double(), 2.0).to_event(1))
    with pyro.plate("cell", len(x)):
        pyro.sample("x_seen", dist.Normal(mean, sd).to_event(1), obs=x)


def poisson_model(x=None):
    rate = pyro.sample("rate", dist.Gamma(torch.ones(P).double(), 0.1).to_event(1))
    with pyro.plate("cell", len(x)):
        pyro.sample("x_seen", dist.Poisson(rate).to_event(1), obs=x)


def fit_of(model: Any, x: Any, values: dict[str, Any], **inputs: Any) -> tuple[Fit, xr.Dataset]:
    """A fit that holds draws of its exact posterior."""
    cells = xr.Dataset({"x": (("cell", "gene")[: np.ndim(x)], x), **inputs})
    cells = cells.assign_coords({"gene": GENES[: cells.sizes["gene"]]} if "gene" in cells.dims else {})
    schema = schema_of(model, cells)
    draws = StoredDraws({name: torch.as_tensor(value)[None] for name, value in values.items()})
    return Fit(model, None, schema, Template.of(schema, cells), draws=draws, settings={"routine": "exact"}), cells


def normal_fit(x: np.ndarray, seed: int = 0) -> tuple[Fit, xr.Dataset]:
    """Posterior under Jeffreys' prior, which theirs is close to."""
    random, n = np.random.default_rng(seed + 1000), len(x)
    variance = (n - 1) * x.var(0, ddof=1) / random.chisquare(n - 1, (S, 1, P))
    mean = x.mean(0) + np.sqrt(variance / n) * random.normal(size=(S, 1, P))
    return fit_of(normal_model, x, {"mean": mean, "sd": np.sqrt(variance)})


def poisson_fit(x: np.ndarray, seed: int = 0) -> tuple[Fit, xr.Dataset]:
    random = np.random.default_rng(seed + 1000)
    return fit_of(poisson_model, x, {"rate": random.gamma(1 + x.sum(0), 1 / (0.1 + len(x)), (S, 1, P))})


def checked(fit_and_cells: tuple[Fit, xr.Dataset], **options: Any) -> xr.Dataset:
    return predictive_check(*fit_and_cells, num_samples=S, progress=False, **options)


def p_of(check: xr.Dataset) -> dict[str, float]:
    return dict(zip(check["statistic"].values.tolist(), check["p_overall"].values.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("law", ["normal", "poisson"])
def test_right_models_pass(law: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    if law == "normal":
        check = checked(normal_fit(random.normal(2.0, 1.5, (N, P)), seed))
    else:
        check = checked(poisson_fit(random.poisson(np.linspace(0.5, 8, P), (N, P)).astype(float), seed))
    assert min(p_of(check).values()) > 0.006
    assert check.attrs["p_all"] > 0.03
    assert float(np.abs(check["share_outside"] - check["share_expected"]).max()) < 0.35


def with_t_copula(random: np.random.Generator, n: int) -> np.ndarray:
    """Normal genes, uncorrelated, that are extreme in the same cells."""
    shock = np.sqrt(2 / random.chisquare(2, (n, 1)))
    return stats.norm.ppf(stats.t(2).cdf(random.normal(size=(n, P)) * shock))


def correlated(random: np.random.Generator, n: int) -> np.ndarray:
    return random.normal(size=(n, P)) + 0.7 * random.normal(size=(n, 1))


WRONG: dict[str, tuple[Any, Any, str, int]] = {
    "heavy tails": (lambda r, n: r.standard_t(3, (n, P)), normal_fit, "gene_kurtosis", N),
    "outliers": (lambda r, n: r.normal(size=(n, P)) + 12 * (r.random((n, P)) < 0.008), normal_fit, "maximum", N),
    "correlation": (correlated, normal_fit, "gene_correlation", N),
    "common shocks": (with_t_copula, normal_fit, "tail_dependence", 800),
    "sizes of cells": (correlated, normal_fit, "cell_total", N),
    "overdispersion": (lambda r, n: r.negative_binomial(3, 0.5, (n, P)) * 1.0, poisson_fit, "gene_variance", N),
    "drop-out": (lambda r, n: r.poisson(4.0, (n, P)) * (r.random((n, P)) > 0.15), poisson_fit, "zero_fraction", N),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_models_are_caught_by_the_statistic_meant_for_them(wrong: str, seed: int) -> None:
    make, fit, statistic, n = WRONG[wrong]
    check = checked(fit(make(np.random.default_rng(seed), n).astype(float), seed))
    assert p_of(check)[statistic] < 0.02
    assert p_of(check)["gene_mean"] > 0.2
    assert check.attrs["p_all"] < 0.03
    if wrong == "common shocks":
        assert min(p_of(check)["gene_kurtosis"], p_of(check)["maximum"]) > 0.02, "margins are right"


def test_the_table_names_its_entries() -> None:
    x = np.random.default_rng(0).normal(size=(N, P))
    check = checked(normal_fit(x), pair_genes=["g4", "g1"])
    assert check["gene_mean_p"].dims == ("gene",)
    assert list(check["gene"].values) == GENES, "names of the input, though the site has none"
    assert list(check["gene_pair"].values) == ["g1 -- g4"]
    assert check["cell_total_observed"].dims == ("cell",)
    np.testing.assert_allclose(check["gene_mean_observed"], x.mean(0))
    assert float(check["gene_correlation_observed"][0]) == pytest.approx(np.corrcoef(x.T)[1, 4])
    assert check.attrs["cells"] == "new"
    assert "zero_fraction" in json.loads(check.attrs["left_out"])
    assert not any(np.isnan(v.values).any() for v in check.values() if v.dtype.kind == "f")
    text = criticism_text(check)
    assert "gene_kurtosis" in text
    assert "Left out: zero_fraction" in text
    assert all(len(line) < 130 for line in text.splitlines())
    few = predictive_check(*normal_fit(x), num_samples=8, progress=False, statistics=["gene_mean"])
    assert "19 are the fewest" in criticism_text(few)
    assert few.attrs["num_draws"] == 8


def test_own_functions() -> None:
    fit = normal_fit(np.random.default_rng(0).normal(size=(N, P)))
    own = {"spread": lambda v: np.ptp(v), "by_gene": lambda v: np.median(v, 0), "two": lambda v: v.mean(0)[:2]}
    check = checked(fit, statistics={**own, "gene_mean": STATISTICS["gene_mean"]})
    assert list(check["statistic"].values) == ["spread", "by_gene", "two", "gene_mean"]
    assert check["spread_p"].dims == ()
    assert check["by_gene_p"].dims == ("gene",)
    assert check["two_p"].dims == ("two_dim_0",)
    assert "spread" in criticism_text(check)
    assert list(checked(fit, statistics=["maximum"])["statistic"].values) == ["maximum"]
    for statistics, words in (
        (["nonsense"], "found 'nonsense'"),
        ("gene_mean", "found the text"),
        ({"no": 3}, "found 'no' without a function"),
        ({"nan": lambda v: np.nan}, "nan: found NaN"),
        ({"grows": lambda v: np.zeros(int(abs(v[0, 0]) * 1e6) % 97 + 1)}, "grows: found shape"),
        ({"same": lambda v: 1.0}, "none that says anything"),
    ):
        with pytest.raises(eg.DataError, match=words):
            checked(fit, statistics=statistics)
    for options, words in (
        ({"pair_genes": ["g1", "g9"]}, "found 'g9'"), ({"pair_genes": 1}, "pair_genes: found 1"),
        ({"level": 1.5}, "1.5"), ({"cells": "old"}, "cells: found 'old'"), ({"kind": "other"}, "kind: found 'other'"),
    ):  # fmt: skip
        with pytest.raises(eg.DataError, match=words):
            checked(fit, **options)


def masked_model(x, seen):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(P).double(), 10.0).to_event(1))
    with pyro.plate("cell", len(x), dim=-2), pyro.plate("gene", P, dim=-1), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(mean.unsqueeze(-2) if mean.dim() == 1 else mean, 1.0), obs=x)


def test_entries_under_a_mask_do_not_count() -> None:
    random = np.random.default_rng(0)
    x, seen = random.normal(size=(N, P)), random.random((N, P)) < 0.8
    hidden = np.where(seen, x, 1e6)
    values = {"mean": random.normal(size=(S, 1, 1, P)) / np.sqrt(N) + np.where(seen, x, 0).sum(0) / seen.sum(0)}
    fit, cells = fit_of(masked_model, hidden, values, seen=(("cell", "gene"), seen))
    check = checked((fit, cells))
    np.testing.assert_allclose(check["gene_mean_observed"], np.nanmean(np.where(seen, x, np.nan), axis=0))
    assert check["maximum_observed"].max() < 10
    assert min(p_of(check).values()) > 0.02


def levels_model(x):
    spread = pyro.sample("spread", dist.HalfNormal(torch.tensor(5.0).double()))
    with pyro.plate("cell", len(x)):
        level = pyro.sample("level", dist.Normal(torch.tensor(0.0).double(), spread))
        pyro.sample("x_seen", dist.Normal(level.unsqueeze(-1), torch.ones(P).double()).to_event(1), obs=x)


def test_new_cells_and_the_same_cells_are_other_questions() -> None:
    """Levels of the cells have two clumps, which the Normal prior does not know; their own posterior does."""
    random = np.random.default_rng(0)
    level = 4.0 * random.choice([-1.0, 1.0], N)
    x = level[:, None] + random.normal(size=(N, P))
    drawn = x.mean(1) * P / (P + 1 / 16) + random.normal(size=(S, N)) / np.sqrt(P)
    fit, cells = fit_of(levels_model, x, {"spread": np.full((S, 1), 4.0), "level": drawn})
    own = {"middle": lambda v: (np.abs(v.mean(1)) < 1.5).mean(), "gene_mean": STATISTICS["gene_mean"]}
    new, same = (checked((fit, cells), cells=which, statistics=own) for which in ("new", "same"))
    assert p_of(new)["middle"] < 0.02
    assert p_of(same)["middle"] > 0.05
    assert (new.attrs["cells"], same.attrs["cells"]) == ("new", "same")
    width = (new["gene_mean_upper"] - new["gene_mean_lower"]).mean()
    assert float(width / (same["gene_mean_upper"] - same["gene_mean_lower"]).mean()) > 2


def everyday(y, scores):
    """Two plates, a discrete site that is summed out, a deterministic one, and two observed variables."""
    rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
    with pyro.plate("group", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    pyro.deterministic("gap", mean[..., 1:] - mean[..., :1], event_dim=1)
    with pyro.plate("cell", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(rate), infer={"enumerate": "parallel"})
        loc = torch.where(kind.bool(), mean[..., 1:], mean[..., :1])
        pyro.sample("y_seen", dist.Normal(loc, 1.0), obs=y)
        pyro.sample("scores_seen", dist.Poisson(2.0 + kind), obs=scores)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_a_users_own_model() -> None:
    random = np.random.default_rng(0)
    kind = random.random(40) < 0.5
    values = {"y": ("cell", random.normal(6.0 * kind - 3.0, 1.0)), "scores": ("cell", random.poisson(2.0 + kind) * 1.0)}
    cells = xr.Dataset(values)
    guide = AutoNormal(poutine.block(everyday, hide=["kind", "gap"]))
    fit = eg.svi(everyday, guide, cells, num_steps=30, learning_rate=0.2, progress=False)
    state = torch.get_rng_state()
    for which in ("new", "same"):
        check = predictive_check(fit, cells, cells=which, num_samples=40, progress=False)
        names = set(check["statistic"].values.tolist())
        assert {"y_seen.gene_mean", "scores_seen.gene_variance"} <= names
        left = json.loads(check.attrs["left_out"])
        assert {"y_seen.gene_correlation", "scores_seen.cell_total"} <= set(left)
        assert check["y_seen.gene_mean_p"].dims == ()
        assert "y_seen.gene_mean" in criticism_text(check)
    prior = predictive_check(fit, cells, kind="prior", num_samples=40, progress=False)
    assert prior.attrs["kind"] == "prior"
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, cells = normal_fit(np.random.default_rng(0).normal(size=(N, P)))
    whole = checked((fit, cells))
    monkeypatch.setattr("embergraph.inference.sampler.CHUNK_ELEMENTS", 20 * N * P)
    monkeypatch.setattr("embergraph.inference.replicated.PART_ELEMENTS", 1)
    sizes = [part.sizes["draw"] for part in fit.replicated(cells, S).parts()]
    assert sum(sizes) == S
    assert 10 < max(sizes) <= 20
    parted = checked((fit, cells))
    xr.testing.assert_equal(parted["gene_mean_observed"], whole["gene_mean_observed"])
    assert float(np.abs(parted["gene_mean_p"] - whole["gene_mean_p"]).max()) < 0.3
    monkeypatch.setattr("embergraph._replicated_ranks.BLOCK", 100)
    xr.testing.assert_allclose(checked((fit, cells)), parted)


def test_fits_of_the_suite() -> None:
    fit, cells = from_prior(num_draws=40), networks_data(60, scale="gene")
    prior = predictive_check(fit, cells, kind="prior", num_samples=30, progress=False)
    assert list(prior["gene"].values) == ["Raf", "Mek", "Erk", "Akt"]
    assert predictive_check(fit, cells, num_samples=20, progress=False).attrs["cells"] == "new"
    screen = counts(num_cells=15)
    fit = eg.fit(eg.models.EnvironmentVAE.for_data(screen, 3), screen, num_steps=60, progress=False)
    for which in ("new", "same"):
        check = predictive_check(fit, screen, cells=which, num_samples=20, progress=False)
        assert check["gene_variance_p"].sizes == {"gene": 12}
    matrices = data_of(m=2)
    fit = matrix_fit(matrices)
    check = predictive_check(fit, matrices, num_samples=20, progress=False)
    assert check.attrs["cells"] == "same"
    assert check["cell_total_p"].dims == ("replicate", "cell")
    assert check["gene_mean_p"].dims == ("gene",)
    with pytest.raises(eg.SchemaError, match="cells: found 'new' and"):
        predictive_check(fit, matrices, cells="new", progress=False)
    with pytest.raises(eg.SchemaError, match="kind: found 'prior'"):
        predictive_check(fit, matrices, kind="prior", progress=False)


def test_pictures() -> None:
    random = np.random.default_rng(0)
    check = checked(poisson_fit(random.negative_binomial(2, 0.2, (N, P)) * np.logspace(0, 3, P).round()))
    axes = all_statistics(check)
    assert [ax.get_title().splitlines()[0] for ax in axes] == check["statistic"].values.tolist()
    variance = axes[check["statistic"].values.tolist().index("gene_variance")]
    assert variance.get_xscale() == "log"
    assert any(text.get_text() in GENES for text in variance.texts), "the worst genes are named"
    assert len(statistics_overview(check).get_yticklabels()) == check.sizes["statistic"]
    scalar = checked(normal_fit(random.normal(size=(N, P))), statistics={"top": np.max})
    assert "top" in observed_against_replicated(scalar, "top").get_title()
    plt.close("all")
    with pytest.raises(eg.DataError, match="statistic: found 'nonsense'"):
        observed_against_replicated(check, "nonsense")
