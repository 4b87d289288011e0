"""What table and plot of `make bench` say of the rounds of one cell."""

from __future__ import annotations

import statistics


def summary(values: list[float]) -> tuple[float, float, float]:
    """The median, and how far values lie below and above it: the quartiles, or the extremes of three rounds or
    fewer."""
    middle = statistics.median(values)
    low, _, high = (
        statistics.quantiles(values, method="inclusive") if len(values) > 3 else (min(values), middle, max(values))
    )
    return middle, middle - low, high - middle
