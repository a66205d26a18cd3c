"""Numbers out of a baseline: what is none is refused where it is read, for neither kernels nor thresholds look."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors.base import Arrays
from mlsecd.errors import BaselineError

__all__ = ["facts_of", "left_out_of", "numbers"]


def numbers(arrays: Arrays, name: str, kind: Any = np.float64, *, infinite: bool = False) -> NDArray[Any]:
    """One array of a section, as such numbers, in one piece.

    Parameters
    ----------
    infinite
        Whether an infinity has a meaning here: a cut that nothing passes.

    Raises
    ------
    KeyError
        There is none of this name.
    ValueError
        Something in it is no number, or none of this kind.
    """
    held = arrays[name]
    with np.errstate(invalid="ignore", over="ignore"):  # what does not fit is told below
        made = np.ascontiguousarray(held, kind) if held.dtype.kind in "biuf" else np.array(np.nan)
    sound = not np.isnan(made).any() if infinite else bool(np.isfinite(made).all())
    if not sound or (made.dtype.kind in "iu" and not np.array_equal(made, held)):
        raise ValueError(f'"{name}" holds what is no number')
    return made


def facts_of(header: dict[str, Any]) -> dict[str, float]:
    """The numbers of a fit that a header tells; ValueError and such where they are none."""
    made = {str(key): float(value) for key, value in header["facts"].items()}
    if not np.isfinite(list(made.values())).all():
        raise ValueError("a fact is no number")
    return made


def left_out_of(header: dict[str, Any]) -> int:
    """How many clients a person kept from the baseline; BaselineError where that is no number."""
    count = header.get("left_out", 0)
    if type(count) is not int or count < 0:
        raise BaselineError("the number of clients that were left out of the baseline is none")
    return count
