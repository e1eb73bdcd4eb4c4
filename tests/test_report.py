"""The report: complete, without NaN and without anything from outside, for every method and a user's own model."""

from __future__ import annotations

import re
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from report_fits import CASES, GENES, Page, case, made, own_guide, own_model, words

import embergraph as eg
from embergraph._report import Report
from embergraph.inference.query import is_fitted_to
from embergraph.models.parts.errors import DataError, SchemaError

LOADS = ("src", "href", "srcset", "poster", "data", "action", "background", "srcdoc")


@pytest.fixture(params=CASES)
def both(request) -> tuple[eg.Fit, Report]:
    return case(request.param)[0], made(request.param)


def test_page_is_whole_and_needs_nothing_else(both, tmp_path):
    _, report = both
    file = report.save(tmp_path / "new" / "report.html")
    assert file.stat().st_size < 3e6
    page = Page(file.read_text(encoding="utf-8"))
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", file.read_text(encoding="utf-8"))
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        assert not any(key.startswith("on") for key in attrs)
        for key in set(LOADS) & set(attrs):
            assert attrs[key].startswith(("data:image/png;base64,", "#")), (tag, attrs[key][:40])
    assert "url(" not in "".join(page.styles)
    assert "@import" not in "".join(page.styles)
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"][1:] for attrs in page.named("a")} <= targets
    assert len(page.named("title")) == len(page.named("h1")) == 1
    assert page.named("img")
    assert all(len(attrs["alt"]) > 20 for attrs in page.named("img"))
    assert len(page.named("caption")) == len(page.named("table"))
    assert report.title in page.text


def test_nothing_undefined_is_shown_and_everything_is_named(both):
    fit, report = both
    page = Page(report.html)
    for shown in (page.text, report.text):
        assert not re.search(r"\bnan\b|\bNone\b\s*(?!\.)|\binf\b|\bNaT\b", shown.replace("None.", "")), shown
        assert set(fit.schema.inputs) <= words(shown)
    data = report.to_dataset()
    sites = data["site"].values.tolist()
    assert set(sites) <= words(page.text)
    assert set(sites) <= words(report.text)
    latent = fit.global_draws(30) if fit.draws is not None else {}
    assert set(latent) <= set(sites)
    assert all(data["site_law"].values)
    assert not any("not a number" in law for law in data["site_law"].values.tolist())
    assert max(map(len, report.text.splitlines())) <= 120
    assert not any("could not be computed" in text for text in report.warnings), report.warnings


def test_dataset_is_stored(both, tmp_path):
    _, report = both
    data = report.to_dataset()
    data.to_netcdf(tmp_path / "report.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "report.nc", engine="h5netcdf") as stored:
        xr.testing.assert_equal(stored.load(), data)
        assert not any(bool(v.isnull().any()) for v in stored.data_vars.values())
    assert list(report.warnings) == data["warning_text"].values.tolist()
    assert set(data["judgement"].values.tolist()) <= {"good", "look", "bad", "none"}


def test_names_are_escaped():
    page, text = Page(made("own svi").html), made("own svi").text
    assert not page.named("b")[3:]  # the scores have three of our own
    assert set(GENES) <= {part.strip() for joined in page.texts for part in joined.split(", ")} | set(page.texts)
    assert '<b>A</b>, B"q", C&D, nano, $E$' in text


def test_warnings_come_as_sentences():
    points = made("own points").warnings
    assert points[0].startswith("This is a point estimate")
    assert not any("Held at one value" in w for w in points)
    assert any("half: 1" in text and "missing" in text for text in points)
    assert any("No held-out data" in text for text in made("own mcmc").warnings)
    assert any("improper" in text for text in made("med-magma").warnings)
    assert any("decoder" in text for text in made("vae em").warnings)


def test_interrupted_fits_say_so():
    fit, data, _ = case("own svi")
    stopped = eg.Fit(
        fit.model, fit.guide, fit.schema, fit.template, history=fit._history, store=fit.store,
        settings={**fit.settings, "interrupted": True, "failures": {"1": "step 3: the loss is not finite"}},
    )  # fmt: skip
    found = eg.report(stopped, data, num_samples=30, progress=False).warnings
    assert found[0].startswith("The fit was interrupted")
    assert "Restarts broke down: 1 (step 3: the loss is not finite)." in found


def test_unfit_questions_are_told_and_spoil_nothing(monkeypatch):
    fit, data, _ = case("own svi")

    def refuse(*_: Any, **__: Any) -> Any:
        raise SchemaError("quality: found none")

    monkeypatch.setattr(fit, "report", refuse)
    report = eg.report(fit, data, num_samples=30, progress=False)
    assert "The quality of the fit could not be computed: quality: found none." in report.warnings
    assert "Not measured." in report.text


def test_same_draws_same_report():
    fit, data, test = case("own svi")
    again = eg.report(fit, data, test, num_samples=30, progress=False)
    first, second = (re.sub(r"made +\S+ \S+ UTC", "", report.text) for report in (made("own svi"), again))
    assert first == second


def test_fits_read_from_disk_have_the_same_report(tmp_path):
    fit, data, test = case("own svi")
    loaded = eg.load(fit.save(tmp_path / "fit"), model=own_model, guide=own_guide)
    again = eg.report(loaded, data, test, num_samples=30, progress=False).to_dataset()
    xr.testing.assert_equal(again, made("own svi").to_dataset())
    fit, data, _ = case("vae em")
    loaded = eg.load(fit.save(tmp_path / "vae"))
    xr.testing.assert_equal(
        eg.report(loaded, data, num_samples=30, progress=False).to_dataset()["site_law"],
        made("vae em").to_dataset()["site_law"],
    )


def test_notebooks_get_a_frame_of_its_own():
    report = made("own points")
    page = Page(report._repr_html_())
    (frame,) = page.named("iframe")
    assert Page(frame["srcdoc"]).named("h1")
    assert frame["title"]
    assert str(report) == report.text


def test_nothing_of_the_callers_changes():
    fit, data, _ = case("notmad mean field")
    pyro.get_param_store().clear()
    torch.manual_seed(5)
    open_figure = plt.figure()
    with matplotlib.rc_context({"font.size": 17.0, "axes.facecolor": "black", "text.color": "white"}):
        before = dict(matplotlib.rcParams)
        states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        eg.report(fit, data, num_samples=30, progress=False)
        assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == [open_figure.number]
    assert plt.gcf() is open_figure
    plt.close(open_figure)
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    assert not dict(pyro.get_param_store())
    assert torch.get_default_dtype() == torch.float32


WRONG: dict[str, Any] = {
    "other genes": (lambda fit, data: (fit, data.assign_coords(gene=["a", "b", "c", "d", "e"])), SchemaError, "gene"),
    "fewer genes": (lambda fit, data: (fit, data.isel(gene=[0, 1])), SchemaError, "gene"),
    "no data": (lambda fit, data: (fit, None), DataError, "data"),
    "empty data": (lambda fit, data: (fit, {}), SchemaError, "y"),
    "missing numbers": (lambda fit, data: (fit, data.assign(y=data["y"] * np.nan)), DataError, "NaN"),
    "no fit": (lambda fit, data: ("fit", data), SchemaError, "fit: found str"),
    "a guide": (lambda fit, data: (fit.guide, data), SchemaError, "wanted a Fit"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused(name):
    change, error, message = WRONG[name]
    fit, data, _ = case("own svi")
    with pytest.raises(error, match=message):
        eg.report(*change(fit, data), progress=False)


@pytest.mark.parametrize("options", [{"num_samples": 10}, {"num_samples": 0}, {"seed": "a"}, {"calibration": 3}])
def test_wrong_options_are_refused(options):
    fit, data, _ = case("own svi")
    with pytest.raises((DataError, SchemaError), match=next(iter(options))):
        eg.report(fit, data, **{"progress": False, **options})


OTHERS = "The data given are not those that were fitted"


def test_data_of_others_are_recognised(both):
    fit, report = both
    assert not any(OTHERS in text for text in report.warnings)
    data = fit.prepared(next(case(name)[1] for name in CASES if case(name)[0] is fit))
    assert is_fitted_to(fit, data)
    name = fit.schema.observed[0]
    assert not is_fitted_to(fit, data.assign({name: data[name] + 1}))


def test_reports_on_other_data_say_so():
    fit, data, _ = case("own svi")
    report = eg.report(fit, data.isel(cell=slice(0, 20)), num_samples=30, progress=False)
    assert any(OTHERS in text for text in report.warnings)
    with pytest.raises(DataError, match="test: found the very data"):
        eg.report(fit, data, data, progress=False)
