"""The law of one entry of an observation given all others, for any distribution that defines it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal

from .errors import SchemaError

if TYPE_CHECKING:
    from jaxtyping import Float


def entry_log_prob(law: Any, value: Float[Tensor, "*batch event"], name: str) -> Float[Tensor, "*batch event"]:
    """Log density of every entry of `value` given the other entries of the same event.

    Distributions of this suite have a method ``entry_log_prob``, and so may a user's own; of others, independent
    entries and the multivariate Normal are known. Masks are not looked at.

    Parameters
    ----------
    law
        Distribution of a site.
    value
        Where it is scored.
    name
        Of the site, for the message.

    Raises
    ------
    SchemaError
        If the law of an entry is not known.
    """
    own = getattr(law, "entry_log_prob", None)
    if own is not None:
        return own(value)
    if law.event_dim == 0:
        return law.log_prob(value)
    if isinstance(law, Independent | MaskedDistribution):
        return entry_log_prob(law.base_dist, value, name)
    if isinstance(law, MultivariateNormal):
        P = law.precision_matrix
        precision = P.diagonal(dim1=-2, dim2=-1)
        deviation = (P @ (value - law.loc).unsqueeze(-1)).squeeze(-1)
        return 0.5 * (precision.log() - math.log(2 * math.pi) - deviation.square() / precision)
    raise SchemaError(
        f"{name}: found {type(law).__name__}, whose law of one entry given the others is not known; wanted independent "
        "entries, MultivariateNormal, or a distribution with the method entry_log_prob(value)"
    )


def are_independent(law: Any) -> bool:
    """Whether the entries of an event are independent of each other."""
    if isinstance(law, Independent | MaskedDistribution):
        return are_independent(law.base_dist)
    return law.event_dim == 0 or bool(getattr(law, "independent_entries", False))
