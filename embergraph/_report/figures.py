"""Pictures of a report: drawn in a style of their own, away from pyplot, and turned into PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .._drawing import GROUPS
from .._figures import new_figure
from ..inference.figures import Picture
from .findings import interval_entries
from .parts import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..inference import Fit

DPI, LARGER = 160, 1.6
MAX_PANELS = 4
STYLE: dict[str, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "axes.formatter.useoffset": False,
    "text.parse_math": False,
    "figure.dpi": 100,
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults with the report's changes; the caller's settings are as before afterwards."""
    import matplotlib.style

    with matplotlib.style.context(STYLE, after_reset=True):
        yield


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure of some inches that pyplot does not know of."""
    return new_figure(width, height).add_subplot()


def to_image(picture: Picture) -> Image:
    """The picture as PNG."""
    return Image(picture.title, picture.alt, to_png(picture.figure), *picture.figure.get_size_inches().tolist())


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file, without a word on what wrote it; made larger if its names want the room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    figure.set_facecolor("white")
    for last in (False, False, True):
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            warnings.filterwarnings("ignore" if last else "error", message="constrained_layout not applied")
            try:
                FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # savefig would draw twice
                break
            except UserWarning:
                figure.set_size_inches(*(LARGER * figure.get_size_inches()).tolist())
    return buffer.getvalue()


def loss_picture(fit: Fit) -> list[Picture]:
    """Loss of every restart, or the log density of every chain; nothing if neither was kept."""
    if np.isfinite(fit.history.values).any():
        from ..plots import plot_loss

        ax = plot_loss(fit, ax=new_axes(6.2, 3.0))
        ax.set_title("")
        count = fit.history.sizes["restart"]
        first, last = (_level(fit.history.values, end) for end in ("start", "end"))
        alt = f"Loss by step of {count} run{'s' if count > 1 else ''}, from {first:.4g} to {last:.4g} in the best one."
        return [Picture("Loss during the fit, smoothed over 2 % of the steps", alt, ax.figure)]  # type: ignore[arg-type]
    if fit.draws is None:
        return []
    chains, draws = fit.draws.shape
    ax = new_axes(6.2, 3.0)
    site, values = _widest(fit)
    for chain in range(chains):
        ax.plot(np.arange(1, draws + 1), values[chain], lw=0.8, color=GROUPS[chain % len(GROUPS)], alpha=0.8)
    ax.set_xlabel("draw")
    ax.set_ylabel(site)
    alt = f"Values of {site} by draw in {chains} chain{'s' if chains > 1 else ''}; chains that mix look alike."
    return [Picture(f"Draws of {site}, one line a chain", alt, ax.figure)]  # type: ignore[arg-type]


def interval_pictures(readings: dict[str, xr.Dataset], plate: str) -> list[Picture]:
    """Estimates and intervals of the strongest entries, a panel a reading."""
    shown = {name: reading for name, reading in readings.items() if "lower" in reading and "upper" in reading}
    if not shown:
        return []
    entries = {name: interval_entries(reading, plate) for name, reading in list(shown.items())[:MAX_PANELS]}
    heights = [max(len(found[0]), 1) + 1.4 for found in entries.values()]
    figure = new_figure(5.6, 0.3 + 0.27 * sum(heights))
    axes = figure.subplots(len(entries), 1, height_ratios=heights, squeeze=False)[:, 0]
    for ax, (name, found) in zip(axes, entries.items(), strict=True):
        _intervals(ax, name, *found)
    levels = {float(reading.attrs["level"]) for reading in shown.values() if "level" in reading.attrs}
    mass = f"{100 * levels.pop():g} % intervals" if len(levels) == 1 else "intervals"
    left_out = len(shown) - len(entries)
    more = f"; {left_out} more are in the tables" if left_out else ""
    alt = f"Dots with bars, a panel each for {', '.join(entries)}; grey where the bar holds zero."
    return [Picture(f"Estimates and {mass} of the strongest entries{more}", alt, figure)]


def check_pictures(check: xr.Dataset) -> list[Picture]:
    """All statistics at a glance, and the entries of the one that fits worst."""
    from ..criticism_plots import observed_against_replicated, statistics_overview

    count = check.sizes["statistic"]
    overview = new_figure(5.6, 1.2 + 0.34 * count)
    statistics_overview(check, ax=overview.add_subplot())
    told = "Share of entries outside the intervals of the replicates by statistic, beside the share expected."
    pictures = [Picture("Entries outside their intervals, by statistic", told, overview)]
    several = check["p_overall"].where(check["num_entries"] > 1).values
    if not np.isfinite(several).any():
        return pictures
    worst = str(check["statistic"].values[int(np.nanargmin(several))])
    entries = new_figure(5.0, 4.4)
    observed_against_replicated(check, worst, ax=entries.add_subplot())
    dots = f"Observed against replicated {worst}, a dot an entry; red: outside its interval."
    pictures.append(Picture(f"{worst}, the statistic that deviates most: observed against replicated", dots, entries))
    return pictures


def calibration_pictures(calibration: xr.Dataset) -> list[Picture]:
    """Ranks of the truth, and stated probabilities against frequencies, of the first few readings."""
    from ..calibration_plots import plot_rank_histogram, plot_stated_probabilities

    kinds = (
        ("rank_histogram", plot_rank_histogram, "ranks of the truth among the draws", "flat where calibrated"),
        ("stated", plot_stated_probabilities, "stated probabilities and frequencies", "on the diagonal if calibrated"),
    )
    pictures = []
    for variable, draw, what, how in kinds:
        if variable not in calibration:
            continue
        names = [str(name) for name in calibration["reading"].values]
        known = [n for n in names if np.isfinite(calibration[variable].sel(reading=n).values).any()]
        for name in known[:MAX_PANELS]:
            figure = new_figure(4.6, 3.2 if variable == "rank_histogram" else 4.2)
            draw(calibration, name, ax=figure.add_subplot())
            pictures.append(Picture(f"{name}: {what}, {how}", f"Picture of {what} of {name}; {how}.", figure))
    return pictures


def _intervals(ax: Axes, name: str, labels: list[str], mid: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    places = np.arange(len(mid))
    clear = (low > 0) | (high < 0)
    if (low < 0).any():
        ax.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
    for group, shade in ((clear, GROUPS[0]), (~clear, "#8a8a8a")):
        ax.hlines(places[group], low[group], high[group], color=shade, lw=2.2, alpha=0.55)
        ax.plot(mid[group], places[group], "o", color=shade, ms=5)
    ax.set_yticks(places, [_short(label or name) for label in labels])
    ax.set_ylim(len(mid) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_title(_short(name))


def _short(label: str, most: int = 28) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _level(losses: np.ndarray, end: str) -> float:
    runs = [row[np.isfinite(row)] for row in losses]
    best = min((run for run in runs if len(run)), key=lambda run: run[-1])
    return float(best[0] if end == "start" else best[-1])


def _widest(fit: Fit) -> tuple[str, np.ndarray]:
    """Log density of every draw if the sampler kept it, else the first site's first number."""
    stored = fit.stored
    if "lp" in stored.statistics:
        return "log density", np.asarray(stored.statistics["lp"])
    name, values = next(iter(stored.values.items()))
    flat = values.reshape(*stored.shape, -1)[..., 0].cpu().numpy()
    return (name if values[0, 0].numel() == 1 else f"{name}, first number"), flat
