"""Pictures of matplotlib as SVG in a page: their text and lines have the page's colours, light or dark."""

import io
import re

from cycler import cycler
from matplotlib.figure import Figure

from cyclic_optim import plotting

#: Drawn in these colours, and shown in those of css/site.css.
_TEXT = "#123456"
COLOURS = {
    _TEXT: "currentColor",
    plotting.LR_COLOUR: "var(--curve-rate)",
    plotting.OTHER_STYLES[0][0]: "var(--curve-momentum)",
    plotting.OTHER_STYLES[1][0]: "var(--curve-weight-decay)",
    plotting.RANGE_TEXT: "var(--curve-range)",
    plotting.STOP_COLOUR: "currentColor",
}
STYLE = {
    "axes.prop_cycle": cycler(color=[plotting.LR_COLOUR, plotting.OTHER_STYLES[0][0], plotting.OTHER_STYLES[1][0]]),
    "axes.edgecolor": _TEXT,
    "axes.facecolor": "none",
    "axes.labelcolor": _TEXT,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "grid.color": _TEXT,
    "legend.facecolor": "none",
    "legend.edgecolor": _TEXT,
    "savefig.facecolor": "none",
    # Text stays text: the page's font, found by a search in the page, read aloud.
    "svg.fonttype": "none",
    "svg.hashsalt": "cyclic_optim",
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}


def svg(figure: Figure, name: str) -> str:
    """The figure as one line of HTML. ``name`` is what a screen reader says."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return themed(file.getvalue(), name)


def themed(drawn: str, name: str) -> str:
    """What matplotlib drew in ``STYLE``, as one line of HTML in the page's colours."""
    drawn = drawn[drawn.index("<svg") :]
    for colour, shown in COLOURS.items():
        drawn = drawn.replace(colour, shown)
    # Of the page's font, whatever the size of the picture; and as wide as its column.
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--md-text-font-family, sans-serif)", drawn)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{name}">', drawn, count=1)
    return f'<div class="figure" data-search-exclude>{" ".join(drawn.split())}</div>'
