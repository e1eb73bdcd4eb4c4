"""Short texts by which numbers are recognised: of data, of states, of checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def fingerprint(named: Mapping[str, Any]) -> str:
    """A short text that differs when names, kinds, shapes or values differ.

    Parameters
    ----------
    named
        Tensors or arrays, of numbers or of text.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, thing in named.items():
        values = thing.detach().cpu().numpy() if isinstance(thing, Tensor) else np.asarray(thing)
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        if values.dtype.kind in "OUS":
            digest.update(json.dumps(values.tolist(), default=str).encode())
        else:
            digest.update(np.ascontiguousarray(values).reshape(-1).data)
    return digest.hexdigest()
