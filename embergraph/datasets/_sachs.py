"""Protein signalling in single cells under nine experimental conditions (Sachs et al. 2005)."""

from __future__ import annotations

import csv
import gzip
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..data import from_arrays

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

# Readable names of the columns of the file, which are named by antibody (p: phosphorylated form).
_PROTEINS = {
    "praf": "Raf",
    "pmek": "Mek",
    "plcg": "Plcg",
    "PIP2": "PIP2",
    "PIP3": "PIP3",
    "p44/42": "Erk",
    "pakts473": "Akt",
    "PKA": "PKA",
    "PKC": "PKC",
    "P38": "P38",
    "pjnk": "Jnk",
}
_GRAPH_NOTE = (
    "18 consensus edges as distributed; they contain the cycle PIP3 -> Plcg -> PIP2 -> PIP3, so the graph is not a DAG"
)


def sachs(log: bool = True) -> xr.Dataset:
    """Load the flow cytometry data of Sachs et al. (Science 2005, doi 10.1126/science.1105809).

    7466 human CD4+ T cells, 11 phosphoproteins and phospholipids, nine conditions stacked in blocks. Seven conditions
    hold the stimulus anti-CD3/CD28: alone (``cd3_cd28``), with ICAM-2 (``icam2``), or with an inhibitor of Akt
    (``aktinhib``), PKC (``g0076``), PIP2 (``psitect``), Mek (``u0126``) or PI3K (``ly``). ``pma`` (activates PKC) and
    ``b2camp`` (activates PKA) stand alone. The first two conditions count as observational. Reagents act on the
    *activity* of their target: its measured amount may go either way. LY294002 inhibits PI3K, which makes PIP3, so
    its target is given as PIP3; many authors treat it as an intervention on Akt.

    Parameters
    ----------
    log
        Natural logarithm of the intensities, for use in models; False gives the raw intensities.

    Returns
    -------
    xr.Dataset
        ``expression (cell, gene)``
            Log intensities (at least 0) or intensities (at least 1); the coordinate ``antibody (gene)`` has the names
            of the columns of the file.
        ``covariates (cell, covariate)``
            Nine indicators, one per condition, that sum to one. They span the same functions as the nine reagents (an
            indicator of the stimulus, one per added reagent), but treat all conditions alike: with reagents the seven
            stimulated conditions would share a coefficient, and a prior that shrinks coefficients would favour them.
            The indicators and a constant are linearly dependent: the model's prior decides between them.
        ``environment (cell)``
            Position of the cell's condition along ``condition``.
        ``regime_target (condition)``, ``regime_kind (condition)``
            The protein acted on, empty if none; and ``observational``, ``inhibitor`` or ``activator``.
        ``reference_graph (regulator, target)``
            The 18 consensus edges of the Causal Discovery Toolbox, unchanged. They contain the cycle
            PIP3 -> Plcg -> PIP2 -> PIP3: never validate them as a DAG.

    Examples
    --------
    >>> from embergraph.datasets import sachs
    >>> data = sachs()
    >>> data["expression"].shape
    (7466, 11)
    >>> [str(name) for name in data["condition"].values[:3]]
    ['cd3_cd28', 'icam2', 'aktinhib']
    """
    antibodies, intensities = _intensities()
    regimes = _table("sachs_regimes.csv")
    conditions = [row["condition"] for row in regimes]
    proteins = [_PROTEINS[antibody] for antibody in antibodies]
    cells_per_condition = np.asarray([int(row["cells"]) for row in regimes])
    environment = np.repeat(np.arange(len(regimes)), cells_per_condition)
    number = np.concatenate([np.arange(count) for count in cells_per_condition])
    data = from_arrays(
        np.log(intensities) if log else intensities,
        np.eye(len(regimes))[environment],
        environment=environment,
        gene_names=proteins,
        covariate_names=conditions,
        cell_names=[f"{conditions[code]}_{i}" for code, i in zip(environment, number, strict=True)],
    )
    data = data.assign_coords(
        condition=conditions, regulator=proteins, target=proteins, antibody=("gene", np.asarray(antibodies))
    ).assign(
        regime_target=("condition", np.asarray([row["target"] for row in regimes])),
        regime_kind=("condition", np.asarray([row["kind"] for row in regimes])),
        reference_graph=(("regulator", "target"), _graph(proteins), {"note": _GRAPH_NOTE}),
    )
    data["expression"].attrs["units"] = "log fluorescence intensity" if log else "fluorescence intensity"
    return data.assign_attrs(
        title="Protein signalling in human CD4+ T cells, nine conditions",
        reference="Sachs et al., Science 308 (2005) 523-529, doi 10.1126/science.1105809",
    )


def _intensities() -> tuple[list[str], Float[np.ndarray, "cell gene"]]:
    packed = files(__package__).joinpath("files", "sachs_intensities.csv.gz").read_bytes()
    header, *rows = gzip.decompress(packed).decode().splitlines()
    return header.split(","), np.loadtxt(rows, delimiter=",")


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(files(__package__).joinpath("files", name).read_text().splitlines()))


def _graph(proteins: list[str]) -> Bool[np.ndarray, "regulator target"]:
    graph = np.zeros((len(proteins), len(proteins)), dtype=bool)
    for edge in _table("sachs_edges.csv"):
        graph[proteins.index(_PROTEINS[edge["Cause"]]), proteins.index(_PROTEINS[edge["Effect"]])] = True
    return graph
