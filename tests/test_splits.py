"""Pieces of splits."""

from __future__ import annotations

from wxlab.splits import half_of


def test_half_of_a_split_keeps_the_seasons_or_the_later_years() -> None:
    assert half_of([(0, 10), (10, 20), (20, 30), (40, 50)]) == [(10, 20), (40, 50)]
    assert half_of([(0, 10), (10, 20), (20, 30)]) == [(10, 20), (25, 30)]
    assert half_of([(5, 16)]) == [(10, 16)]
