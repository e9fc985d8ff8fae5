"""Attention by layer as tables of coloured cells, which need no script."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from mrrag.report import plots
from mrrag.report.templating import number, render


def heat_tables(maps: plots.Maps, titles: Sequence[str], summary: Markup | str = "") -> Markup:
    """Return maps as tables, layers × columns: before, after and their difference.

    Parameters
    ----------
    titles
        Of the three; one with an empty title is left out.
    summary
        What stands below them.
    """
    labels = plots.layer_labels(len(maps.before), maps.critical)
    shared, swing = (0.0, maps.top), (-maps.swing, maps.swing)
    looks = (
        (maps.before, shared, plots.SEQUENTIAL, False),
        (maps.after, shared, plots.SEQUENTIAL, False),
        (maps.difference, swing, plots.DIVERGING, True),
    )
    tables = []
    for title, (values_LX, limits, scale, signed) in zip(titles, looks, strict=True):
        if not title:
            continue
        grounds, inks = plots.cell_colours(values_LX, limits, scale)
        rows = [
            [
                (number(float(value), signed=signed, digits=2), ground, ink)
                for value, ground, ink in zip(*row, strict=True)
            ]
            for row in zip(values_LX, grounds, inks, strict=True)
        ]
        tables.append((title, list(zip(labels, rows, strict=True))))
    return render("heat_tables.html", maps=tables, columns=maps.columns, extremes=summary)
