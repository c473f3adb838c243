"""The table of the ablation: means over seeds, and differences paired by query."""

import numpy as np
import pytest

from benchmarks.ablation import Figure, format_figures, summarise_rows
from processor.ranking.intervals import paired_interval
from processor.ranking.results import Outcome


def outcomes(values):
    """A query for each value, in an order of its own: its average precision, found at once where it is 1."""
    made = [Outcome(f"{n}.tif", n // 2, value, 1 if value == 1 else 3) for n, value in enumerate(values)]
    return made[::-1]


def seeds():
    """Two seeds whose second row is better by 0.1 and by 0.3."""
    base = np.linspace(0.1, 0.6, 20)
    return [
        {name: {"O2S": outcomes((base + gain).tolist())} for name, gain in (("baseline", 0.0), ("+ denoising", own))}
        for own in (0.1, 0.3)
    ]


def test_rows_are_paired_by_query_over_the_seeds():
    found = {(own.row, own.metric): own for own in summarise_rows(seeds())}
    base, next_row = found["baseline", "mAP"], found["+ denoising", "mAP"]
    assert base.against == "" and base.gain is None
    assert next_row.values == pytest.approx((0.45, 0.65)) and next_row.against == "baseline"
    ships = np.arange(20) // 2
    expected = paired_interval(np.linspace(0.1, 0.6, 20), np.linspace(0.3, 0.8, 20), ships)
    assert (next_row.gain, next_row.low, next_row.high) == pytest.approx((0.2, expected.low, expected.high))
    assert next_row.seeds_ahead == 2
    assert found["+ denoising", "R1"].seeds_ahead == 0


def test_the_table_is_in_percent():
    figures = [Figure("O2S", "baseline", "mAP", (0.2, 0.4)), Figure("S2O", "baseline", "mAP", (0.9,))]
    lines = format_figures(figures, "O2S").splitlines()
    assert len(lines) == 3
    assert [cell.strip() for cell in lines[2].split("|")[1:5]] == ["baseline", "mAP", "30.0", "14.1"]
