"""A report on a fit: what it was made of and how far it can be believed, as text, as a Dataset and as one HTML file.

`report` works on every `Fit`, of the methods here and of a model of your own; pictures of a method come from
`Fit.figures`, its numbers and their limits from `Fit.report`, what it found from `Fit.readings`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import xarray as xr
from tqdm.auto import tqdm

from ..inference import Fit
from ..inference.export import name_of
from ..inference.inputs import DataLike, digest_of, to_inputs
from ..inference.judgement import verdict_of
from ..inference.options import check_counts
from ..models.parts.errors import DataError, EmbergraphError, SchemaError
from . import evidence
from . import sections as write
from .dataset import as_dataset_of
from .figures import interval_pictures, loss_picture, style, to_image
from .findings import findings
from .html import as_fragment, as_page
from .model_lines import SiteLine, guide_lines, held_at_one_value, site_lines
from .parts import Block, Facts, Paragraph, Section, sizes_text
from .text import as_text
from .warnings import data_warnings, fit_warnings

T = TypeVar("T")
LEAST_DRAWS = 25


@dataclass(frozen=True)
class Report:
    """What `report` returns: print it, `save` it, or leave it as the last line of a notebook's cell.

    Attributes
    ----------
    title, subtitle
        What was fitted, how, and to how much.
    warnings
        What a reader must know first, as sentences.
    sections
        The parts of the report.
    """

    title: str
    subtitle: str
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    _counts: dict[str, int] = field(repr=False)
    _dataset: xr.Dataset = field(repr=False)

    @property
    def text(self) -> str:
        """The report as text of at most 120 columns."""
        warned = tuple(Paragraph(f"* {text}") for text in self.warnings) or (Paragraph("None."),)
        return as_text(self.title, self.subtitle, (Section("warnings", "Warnings", warned), *self.sections))

    def __str__(self) -> str:
        return self.text

    @property
    def html(self) -> str:
        """The report as one HTML document that refers to nothing outside itself."""
        return as_page(self.title, self.subtitle, self._counts, self.warnings, self.sections)

    def _repr_html_(self) -> str:
        return as_fragment(self.title, self.html)

    def to_dataset(self) -> xr.Dataset:
        """The report as a Dataset that netCDF can hold.

        Returns
        -------
        xr.Dataset
            ``value``, ``judgement`` and ``meaning`` by ``number``; ``site_*`` by ``site``; ``input_*`` by ``input``;
            ``finding_*`` by ``finding``; ``warning_text`` by ``warning``.
        """
        return self._dataset.copy()

    def save(self, path: str | Path) -> Path:
        """Write the HTML file; folders are made if needed."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.html, encoding="utf-8")
        return file


def report(
    fit: Fit,
    data: DataLike,
    test: DataLike | None = None,
    *,
    calibration: xr.Dataset | None = None,
    stability: xr.Dataset | None = None,
    num_samples: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Tell what a fit is and how far it can be believed.

    Parameters
    ----------
    fit
        Any fit: of a method of this suite, of a model of your own, or read from disk.
    data
        The data that were fitted; a fit keeps none.
    test
        Held-out data, for the log predictive density.
    calibration, stability
        Results of `calibrate` and `stability`, which take many fits and are not made here.
    num_samples
        Posterior draws that numbers and pictures are made from, at least 25.
    seed
        Seed of the draws; the caller's random state is left alone.
    progress
        Whether to show a bar.

    Returns
    -------
    Report
        With ``str(report)``, ``report.to_dataset()`` and ``report.save("report.html")``.

    Raises
    ------
    SchemaError
        If `fit` is no fit, or data do not belong to it.
    DataError
        If data are empty or not finite, or an option is out of range.
    """
    if not isinstance(fit, Fit):
        raise SchemaError(f"fit: found {type(fit).__name__}; wanted a Fit, as svi, em, mcmc, fit or load return it")
    check_counts(num_samples=num_samples, seed=seed)
    if num_samples < LEAST_DRAWS:
        raise DataError(f"num_samples: found {num_samples}; wanted at least {LEAST_DRAWS}")
    for name, given in (("calibration", calibration), ("stability", stability)):
        if given is not None and not isinstance(given, xr.Dataset):
            raise SchemaError(f"{name}: found {type(given).__name__}; wanted a Dataset, or None")
    prepared = fit.prepared(data)
    to_inputs(fit.schema, prepared)
    held_out = None if test is None else fit.prepared(test)
    if held_out is not None:
        to_inputs(fit.schema, held_out)
        if digest_of(fit.schema, held_out) == digest_of(fit.schema, prepared):
            raise DataError("test: found the very data that were fitted; wanted held-out data, or None")
    maker = _Maker(fit, data, test, prepared, held_out, num_samples, seed)
    with tqdm(total=6, desc="report", disable=not progress) as bar, style(), torch.random.fork_rng():
        return maker.made(calibration, stability, bar)


class _Maker:
    def __init__(
        self,
        fit: Fit,
        data: DataLike,
        test: DataLike | None,
        prepared: xr.Dataset,
        held_out: xr.Dataset | None,
        num_samples: int,
        seed: int,
    ) -> None:
        self.fit, self.data, self.test = fit, data, test
        self.prepared, self.held_out = prepared, held_out
        self.num_samples, self.seed = num_samples, seed
        self.failed: list[str] = []

    def made(self, calibration: xr.Dataset | None, stability: xr.Dataset | None, bar: Any) -> Report:
        fit, num_samples, seed = self.fit, self.num_samples, self.seed
        lines = self.tried("The sites of the model", lambda: site_lines(fit, self.prepared, seed=seed)) or []
        roles = self.tried("The sites of the guide", lambda: guide_lines(fit, self.prepared)) or []
        fixed = held_at_one_value(fit, roles)
        bar.update()
        table = self.tried("The quality of the fit", lambda: fit.report(self.data, self.test, num_samples=num_samples))
        bar.update()
        readings = self.tried("What the fit found", lambda: fit.readings(self.data, num_samples=num_samples, seed=seed))
        bar.update()
        sections = [
            write.data_section(fit, self.prepared, self.held_out),
            write.model_section(fit, lines),
            write.guide_section(fit, roles, lines, fixed),
            write.routine_section(fit),
            Section("convergence", "Convergence and quality", tuple(self.quality(table))),
            Section("findings", "What it found", tuple(self.found(readings or {}))),
        ]
        bar.update()
        check = self.tried("The predictive checks", lambda: evidence.checked_data(fit, self.data, num_samples, seed))
        bar.update()
        name = name_of(fit.model)
        sections += [evidence.criticism_section(check)] if check is not None else []
        sections += [evidence.calibration_section(calibration, fit), evidence.stability_section(stability, fit)]
        versions = write.versions(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        sections.append(Section("versions", "Versions", (Facts(tuple(versions.items())),)))
        warnings = fit_warnings(fit, table, lines, fixed) + self.failed
        warnings += evidence.criticism_warnings(check) if check is not None else []
        warnings += evidence.calibration_warnings(calibration, name) + evidence.stability_warnings(stability)
        warnings += data_warnings(fit, self.prepared, self.held_out)
        bar.update()
        return self.finished(lines, roles, table, readings or {}, warnings, sections, versions)

    def quality(self, table: xr.Dataset | None) -> list[Block]:
        images = self.tried("The picture of the loss", lambda: [to_image(p) for p in loss_picture(self.fit)])
        numbers: Block = Paragraph("Not measured.") if table is None else write.quality_table(table)
        return [numbers, *(images or [])]

    def found(self, readings: dict[str, xr.Dataset]) -> list[Block]:
        fit, plate = self.fit, self.fit.schema.plate
        pictures = self.tried(
            "The pictures of the method",
            lambda: (
                fit.figures(self.data, num_samples=self.num_samples, seed=self.seed)
                or interval_pictures(readings, plate)
            ),
        )
        return [*(to_image(picture) for picture in pictures or []), *findings(readings, plate)]

    def finished(
        self,
        lines: list[SiteLine],
        roles: list[tuple[str, str]],
        table: xr.Dataset | None,
        readings: dict[str, xr.Dataset],
        warnings: list[str],
        sections: list[Section],
        versions: dict[str, str],
    ) -> Report:
        fit = self.fit
        counts = Counter(map(verdict_of, table.data_vars.values())) if table is not None else Counter[Any]()
        observed = [name for name in fit.schema.observed if name in self.prepared]
        sizes = [f"{name} {sizes_text(self.prepared[name].dims, self.prepared[name].shape)}" for name in observed[:1]]
        routine = str(fit.settings.get("routine", "an unknown routine"))
        subtitle = " · ".join([f"Fitted by {routine}", *sizes])
        title = str(getattr(fit.model, "name", None) or name_of(fit.model))
        attrs = {"title": title, "subtitle": subtitle, **versions}
        dataset = as_dataset_of(lines, roles, table, readings, warnings, sections[0], fit.schema.plate)
        return Report(title, subtitle, tuple(warnings), tuple(sections), dict(counts), dataset.assign_attrs(attrs))

    def tried(self, what: str, work: Callable[[], T]) -> T | None:
        """The result, or nothing and a sentence among the warnings: one question without an answer spoils no report."""
        try:
            return work()
        except EmbergraphError as error:
            self.failed.append(f"{what} could not be computed: {error}.")
            return None
