"""Bars of a table: as long as the numbers, in the order of the rows."""

from __future__ import annotations

import pandas as pd
import pytest

from wxlab.errors import WxlabError
from wxlab.plots import plot_bars


def test_bars_are_the_numbers() -> None:
    table = pd.DataFrame({"CSI-m": [0.2, 0.4], "MAE": [1.5, float("nan")]}, index=["a", "b"])
    first, second = plot_bars(table).axes
    assert [bar.get_width() for bar in first.patches] == [0.2, 0.4]
    assert [text.get_text() for text in second.texts] == ["1.5", ""]
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]
    assert first.yaxis_inverted()


def test_tables_that_cannot_be_drawn() -> None:
    with pytest.raises(WxlabError, match="table is empty"):
        plot_bars(pd.DataFrame())
    with pytest.raises(WxlabError, match="column 'who' holds no numbers"):
        plot_bars(pd.DataFrame({"who": ["a"]}))
