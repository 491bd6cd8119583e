"""Numbers and texts as cells of tables, and the cleaning of text that strangers wrote."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from icl_bench.evaluation.statistics import Interval
from icl_bench.leaderboard.entry import NOT_STATED, EntryInfo
from icl_bench.leaderboard.schema import HIDDEN
from icl_bench.leaderboard.suites import AnySuite

DASH = "–"

# Characters that Markdown, its HTML and its automatic links give a meaning.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&:@])")
# Some spreadsheets read the wide forms of these, too.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def clean_text(text: str) -> str:
    """One line of text without control, bidirectional and other hidden characters."""
    shown = "".join(
        " " if c in "\t\r\n\x0b\x0c" or unicodedata.category(c) in ("Zl", "Zp") else c
        for c in text
        if c in "\t\r\n\x0b\x0c" or unicodedata.category(c) not in HIDDEN - {"Zl", "Zp"}
    )
    return " ".join(shown.split())


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: no markup, HTML, table cell or link comes of it."""
    escaped = _MARKDOWN.sub(r"\\\1", clean_text(text))
    return re.sub(r"(?i)(www)\.", r"\1\\.", escaped)  # GitHub links these without a scheme


def csv_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula: such a text begins with an apostrophe."""
    text = clean_text(text)
    return "'" + text if text.startswith(_FORMULA) else text


def percent(value: float, digits: int = 1) -> str:
    """An accuracy in [0, 1] as percent."""
    return f"{100 * value:.{digits}f}"


def signed(value: float) -> str:
    """A difference of accuracies in percentage points; no sign where it rounds to zero."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def plus_minus(interval: Interval, shown: str | None = None) -> str:
    """``mean ± half-width`` in percent; the mean alone if there is no interval."""
    shown = percent(interval.mean) if shown is None else shown
    half = interval.half_width
    return shown if math.isnan(half) else f"{shown} ± {percent(half)}"


def number(value: int | None) -> str:
    """A count with thousands separated, or a dash."""
    return DASH if value is None else f"{value:,}"


def seeds_text(entry: EntryInfo, count: int, suite: AnySuite) -> str:
    """Number of meta-training seeds, beside the number asked for if it is less."""
    if entry.deterministic:
        return "deterministic"
    wanted = suite.meta_train_seeds
    return f"{count} of {wanted}" if count < wanted else str(count)


def entry_titles(entries: Iterable[EntryInfo]) -> dict[str, str]:
    """Name → title as Markdown, with the name where titles repeat."""
    titles = {entry.name: markdown_text(entry.title) for entry in entries}
    counts = Counter(titles.values())
    return {n: f"{title} ({n})" if counts[title] > 1 else title for n, title in titles.items()}


def entry_marks(entry: EntryInfo, meta_train: str) -> list[str]:
    """Words for what sets an entry apart, from what it says about itself.

    Args:
        entry: About the method.
        meta_train: What the suite's entries are meta-trained on.
    """
    external = entry.external_data.strip().casefold()
    marks = {
        "reference": entry.kind == "reference",
        "other meta-training": entry.meta_train not in (None, meta_train),
        "external data": external not in ("none", NOT_STATED),
        "external data not stated": external == NOT_STATED,
    }
    return [mark for mark, applies in marks.items() if applies]


def linked_title(title: str, suite: str, name: str, marks: Sequence[str]) -> str:
    """Title with a link to what was handed in, and its marks, as Markdown.

    Args:
        title: Title, see ``entry_titles``.
        suite: Suite.
        name: Name of the entry.
        marks: Words for what sets the entry apart.
    """
    link = f"[{title}]({suite}/{name}/entry.toml)"
    return f"{link} {', '.join(f'*{mark}*' for mark in marks)}" if marks else link


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; the first columns are aligned left, the others right."""
    from tabulate import tabulate

    align = ["left"] * left + ["right"] * (len(columns) - left)
    return tabulate(rows, columns, tablefmt="pipe", disable_numparse=True, colalign=align)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal; nothing that steers one comes through."""
    from tabulate import tabulate

    head, *shown = [[clean_text(cell) for cell in row] for row in (columns, *rows)]
    return tabulate(shown, headers=head, tablefmt="simple", disable_numparse=True)


def folded(summary: str, parts: Sequence[str]) -> str:
    """Markdown that a reader opens with a click; ``summary`` is ours, not a stranger's."""
    head = f"<details><summary>{summary}</summary>"
    return "\n\n".join([head, *parts, "</details>"])


def not_ranked_parts(rows: Mapping[str, tuple[EntryInfo, tuple[str, ...]]]) -> list[str]:
    """What a board says of entries that cannot be compared; nothing if there are none."""
    if not rows:
        return []
    cells = [
        [markdown_text(info.title), name, "; ".join(map(markdown_text, reasons))]
        for name, (info, reasons) in rows.items()
    ]
    return [
        "**Not ranked**: made for another version of an environment or of the scorer, so that "
        "the numbers cannot be compared.",
        markdown_table(["Method", "Entry", "Reason"], cells, 3),
    ]
