"""Choice by held-out density: the rule on given numbers, the split, what is kept, and which models are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from notmad_use_cases import QUICK, data

import embergraph as eg
from embergraph.held_out import ranked
from embergraph.models import NOTMAD

FAST: dict[str, Any] = QUICK | {"num_orders": 1, "num_guide_steps": 40, "num_steps": 120, "posterior": "mean_field"}


def test_ties_go_to_the_first_listed() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=400)
    noise = rng.normal(size=400)
    noise -= noise.mean()
    error = noise.std(ddof=1) / 20
    rows = ranked({"simple": base, "near": base + noise + 0.9 * error, "worse": base - 1.0})
    assert [rows[name]["tied"] for name in rows] == [True, True, False]
    assert rows["simple"]["difference"] == pytest.approx(-0.9 * error)
    assert rows["simple"]["difference_se"] == pytest.approx(error)
    assert rows["near"]["difference"] == rows["near"]["difference_se"] == 0.0
    assert rows["worse"]["log_density_se"] == pytest.approx(base.std(ddof=1) / 20)
    rows = ranked({"simple": base, "clear": base + noise + 1.1 * error})
    assert [row["tied"] for row in rows.values()] == [False, True]


def test_pairing_finds_what_the_spread_of_cells_hides() -> None:
    rng = np.random.default_rng(1)
    base = 10 * rng.normal(size=200)
    rows = ranked({"first": base, "second": base + 0.1 + 0.01 * rng.normal(size=200)})
    assert not rows["first"]["tied"]
    assert rows["first"]["log_density_se"] > 5 * 0.1


@pytest.fixture(scope="module")
def chosen() -> tuple[eg.NOTMADFit, Any, Any]:
    train = data(240)
    models = {f"K {k}": NOTMAD.for_data(train, k) for k in (1, 2)}
    return *eg.choose(models, train, seed=1, **FAST), train


def test_the_comparison_is_that_of_held_out_cells(chosen: Any) -> None:
    fit, table, train = chosen
    part, held_out = eg.random_split(train, seed=1)
    again = {f"K {k}": eg.fit(NOTMAD.for_data(train, k), part, seed=1, **FAST) for k in (1, 2)}
    density = {name: found.log_density(held_out, 500, seed=1) for name, found in again.items()}
    for name, found in again.items():
        row = table.sel(model=name)
        assert float(row["log_density"]) == pytest.approx(float(density[name].mean()))
        networks = found.networks(held_out, interval=None)
        assert float(row["mse"]) == pytest.approx(eg.metrics.held_out_mse(networks, held_out))
    gap = (density["K 1"] - density["K 2"]).values
    assert float(table["difference"].sel(model="K 1")) == pytest.approx(gap.mean())
    assert float(table["difference_se"].sel(model="K 1")) == pytest.approx(gap.std(ddof=1) / np.sqrt(60))
    assert table.attrs["chosen"] == table.attrs["best"] == "K 2", "edges change with time and stress"
    assert fit.model.num_archetypes == 2
    assert fit.template.variables["expression"][1][0] == 240, "refitted to all cells"


def test_the_choice_is_kept_and_reported(chosen: Any, tmp_path: Path) -> None:
    fit, table, train = chosen
    fit.save(tmp_path)
    again = eg.load(tmp_path)
    assert again.settings["choice"] == fit.settings["choice"]
    assert eg.choice_table(again).identical(table)
    report = fit.report(train, num_samples=50)
    lead = float(table["log_density"].sel(model="K 2") - table["log_density"].sel(model="K 1"))
    assert float(report["choice_lead_0"]) == pytest.approx(lead)
    assert "'K 2' over 'K 1'" in eg.as_text(report)
    with pytest.raises(eg.DataError, match="choice: found none"):
        eg.choice_table(eg.load(save_without_choice(fit, tmp_path / "other")))


def save_without_choice(fit: eg.NOTMADFit, path: Path) -> Path:
    kept = fit.settings.pop("choice")
    try:
        return fit.save(path)
    finally:
        fit.settings["choice"] = kept


def test_a_failed_model_is_left_out_and_the_part_is_not_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    train = data(120)
    models = {f"K {k}": NOTMAD.for_data(train, k) for k in (1, 2)}
    real = eg.choice.fit

    def fit(model: NOTMAD, *args: Any, **options: Any) -> Any:
        if model.num_archetypes == 2:
            raise eg.NumericalError("broke down")
        return real(model, *args, **options)

    monkeypatch.setattr(eg.choice, "fit", fit)
    found, table = eg.choose(models, train, refit=False, **FAST)
    assert table.attrs["chosen"] == "K 1"
    assert np.isnan(table["log_density"].sel(model="K 2"))
    assert found.settings["choice"]["failures"] == {"K 2": "broke down"}
    assert found.template.variables["expression"][1][0] == 90
    assert "could not be fitted" in eg.as_text(found.report(train, num_samples=50))


def test_after_an_interruption_nothing_more_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    train = data(120)
    models = {f"K {k}": NOTMAD.for_data(train, k) for k in (1, 2)}
    real, calls = eg.choice.fit, []

    def fit(model: NOTMAD, *args: Any, **options: Any) -> Any:
        calls.append(model.num_archetypes)
        found = real(model, *args, **options)
        found.settings["interrupted"] = True
        return found

    monkeypatch.setattr(eg.choice, "fit", fit)
    found, table = eg.choose(models, train, **FAST)
    assert calls == [1]
    assert table.attrs["interrupted"] == 1
    assert found.settings["choice"]["chosen"] == "K 1"


def test_models_that_cannot_be_compared_are_refused() -> None:
    train = data(60)
    one = NOTMAD.for_data(train, 1)
    for models, error, words in (
        ({"one": one}, eg.DataError, "at least two"),
        ({"one": one, "other": print}, eg.SchemaError, "models\\['other'\\]"),
        ({"one": one, "graphs": eg.models.MEDMAGMA.for_data(train)}, eg.SchemaError, "these very cells"),
        ({"one": one, "energy": NOTMAD.for_data(train, 1, order=None)}, eg.SchemaError, "unnormalised"),
    ):
        with pytest.raises(error, match=words):
            eg.choose(models, train, **FAST)


def test_other_methods_are_compared_too() -> None:
    screen = eg.datasets.simulated_perturbations(
        0, num_perturbations=4, num_cells=25, num_latents=2, num_genes=8, max_targets=1, control=True
    )
    models = {
        f"{d} latents": eg.models.EnvironmentVAE.for_data(screen, num_latents=d, control="control") for d in (1, 2)
    }
    fit, table = eg.choose(models, screen, within="environment", refit=False, num_steps=30, progress=False)
    assert isinstance(fit, eg.EnvironmentVAEFit)
    assert np.isfinite(table["log_density"]).all()
    assert np.isnan(table["mse"]).all()


@pytest.mark.parametrize("turns", [True, False])
def test_edges_that_turn_ask_for_projected_networks(turns: bool) -> None:
    """Raf acts on Mek; with `turns`, Mek on Raf under the drug. One order cannot hold both."""
    rng = np.random.default_rng(0)
    drug = rng.integers(2, size=300)
    W = np.zeros((300, 3, 3))
    W[drug == 0, 0, 1] = W[:, 0, 2] = 1.3
    W[drug == 1, 1 if turns else 0, 0 if turns else 1] = 1.3 if turns else -1.3
    x = (rng.normal(size=(300, 1, 3)) @ np.linalg.inv(np.eye(3) - W))[:, 0]
    train = eg.standardize(eg.from_arrays(x, drug[:, None].astype(float), gene_names=["Raf", "Mek", "Erk"]))[0]
    models = {"one order": NOTMAD.for_data(train, 2), "projected": NOTMAD.for_data(train, 2, order="projected")}
    options = FAST | {"posterior": "auto", "num_bootstrap": 2, "num_restarts": 4, "num_warmup": 10, "num_draws": 20}
    _, table = eg.choose(models, train, refit=False, **options)
    assert table.attrs["chosen"] == ("projected" if turns else "one order")
    if turns:
        row = table.sel(model="one order")
        assert float(row["difference"]) < -2 * float(row["difference_se"])
