"""The same archetype under the same label in all chains of a posterior."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment

from ..models.notmad import NOTMAD
from ._notmad_stream import Values, num_draws_of, some


def aligned(model: NOTMAD, values: Values, num_chains: int) -> Values:
    """Draws whose archetypes are numbered in every chain as in the first one; networks stay what they are.

    Archetypes at the medians of each chain are matched by their squared distance (Hungarian method). Labels that
    change within a chain are not looked for.

    Parameters
    ----------
    model
        The model.
    values
        Draws, chain by chain, as many of each.
    num_chains
        How many chains.
    """
    if num_chains < 2 or model.num_archetypes < 2:
        return values
    each = num_draws_of(values) // num_chains
    chains = [some(values, slice(c * each, (c + 1) * each)) for c in range(num_chains)]
    with torch.no_grad():
        centres = [
            model.archetypes_of({name: value.median(0, keepdim=True).values for name, value in chain.items()})[0]
            for chain in chains
        ]
    order = [linear_sum_assignment(torch.cdist(centres[0].flatten(1), W.flatten(1)).square().cpu())[1] for W in centres]
    if all((numbers == order[0]).all() for numbers in order):
        return values
    return {
        name: torch.cat([_renumbered(model, name, c[name], numbers) for c, numbers in zip(chains, order, strict=True)])
        for name in values
    }


def _renumbered(model: NOTMAD, name: str, value: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    dims = model.schema.site_dims.get(name, ())
    if "archetype" not in dims:
        return value
    return value.index_select(dims.index("archetype") - len(dims), torch.as_tensor(numbers, device=value.device))
