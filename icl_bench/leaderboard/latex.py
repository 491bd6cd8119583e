"""A board as a table for a paper, in LaTeX with booktabs."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from types import MappingProxyType

from icl_bench.envs.text_source import Domain
from icl_bench.evaluation import protocol
from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.evaluation.statistics import Interval, ranks
from icl_bench.evaluation.text_protocol import text_fingerprint
from icl_bench.leaderboard.comparison import same_tasks, text_outcomes
from icl_bench.leaderboard.formatting import clean_text, percent, seeds_text
from icl_bench.leaderboard.marks import AnyEntryScore, row_marks
from icl_bench.leaderboard.scoring import EntryScore, SuiteScore
from icl_bench.leaderboard.tables import headers
from icl_bench.leaderboard.text_columns import DOMAINS, frozen_tasks
from icl_bench.leaderboard.text_scoring import ReportedText, TextEntryScore, TextSuiteScore

LATEX_DASH = "--"

# What TeX does not take as it is; brackets and the star are options of the line break before them.
_ESCAPES: Mapping[str, str] = MappingProxyType(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\symbol{34}",
        "`": r"\symbol{96}",
        "[": "{[}",
        "]": "{]}",
        "*": "{*}",
        "–": r"\textendash{}",
        "—": r"\textemdash{}",
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "’": "'",
        "‘": r"\textquoteleft{}",
        "“": r"\textquotedblleft{}",
        "”": r"\textquotedblright{}",
        "…": r"\dots{}",
        "ß": r"\ss{}",
        "ø": r"\o{}",
        "Ø": r"\O{}",
        "ł": r"\l{}",
        "Ł": r"\L{}",
        "æ": r"\ae{}",
        "Æ": r"\AE{}",
        "œ": r"\oe{}",
        "Œ": r"\OE{}",
        "ı": r"\i{}",
    }
)

# Combining marks as commands; their letter stands in braces.
_ACCENTS: Mapping[str, str] = MappingProxyType(
    {
        "\u0300": r"\`",
        "\u0301": r"\'",
        "\u0302": r"\^",
        "\u0303": r"\~",
        "\u0304": r"\=",
        "\u0306": r"\u",
        "\u0307": r"\.",
        "\u0308": r"\"",
        "\u030a": r"\r",
        "\u030b": r"\H",
        "\u030c": r"\v",
        "\u0327": r"\c",
    }
)


def latex_text(text: str) -> str:
    """Text that every LaTeX shows as it is: no command, cell, comment or formula comes of it.

    A character that plain pdfLaTeX may not have, of another alphabet for instance, becomes a
    question mark: a table of many authors must compile on every machine.
    """
    escaped = "".join(map(_latex_character, unicodedata.normalize("NFC", clean_text(text))))
    return re.sub(r"([-',])(?=\1)", r"\1{}", escaped)  # two of them would become one other sign


def _latex_character(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isascii():
        return character
    parts = unicodedata.normalize("NFD", character)
    if re.fullmatch("[A-Za-z].", parts) and parts[1] in _ACCENTS:
        return f"{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return "?"


def latex_table(score: SuiteScore | TextSuiteScore, entries: Sequence[str] | None = None) -> str:
    """A suite's board as tables that a paper can input; a text suite has one for each domain.

    Bold are the numbers that no other entry of the table is significantly better than: with some
    of the entries only, comparisons are made among these.

    Args:
        score: The suite's scores.
        entries: Names of the entries to show; all by default.

    Raises:
        ValueError: If the suite has no such entry with ranked columns, or there is nothing to show.
    """
    known = [e.entry.name for e in _entries(score)]
    for name in entries or ():
        if name not in known:
            there_are = f"there are {', '.join(known)}" if known else "there are none"
            raise ValueError(f"no ranked entry {name!r} on {score.suite.name}: {there_are}")
    wanted = known if entries is None else entries
    if not wanted and not score.reported:
        raise ValueError(f"nothing to show: {score.suite.name} has no entries yet")
    head = [
        f"Made by `icl-bench latex {score.suite.name}`: icl-bench {metadata.version('icl-bench')}, "
        f"scorer version {SCORER_VERSION}.",
        r"Needs \usepackage{booktabs}. Too wide? \resizebox of graphicx around the tabular helps.",
        "Its columns are about these frozen episodes:",
    ]
    if isinstance(score, TextSuiteScore):
        head += [f"{env} {text_fingerprint(env)}" for env in score.suite.envs]
        tables = [_text_table(score, domain, wanted) for domain in DOMAINS]
    else:
        head += [f"{e} {protocol.evaluation_fingerprint(e)}" for e in score.suite.envs]
        tables = [_vector_table(score, wanted)]
    return "\n\n".join(["\n".join(f"% {line}" for line in head), *tables]) + "\n"


def _entries(score: SuiteScore | TextSuiteScore) -> Sequence[AnyEntryScore]:
    if isinstance(score, SuiteScore):
        return score.entries
    return [e for e in score.entries.values() if any(e.full(domain) for domain in DOMAINS)]


def _vector_table(score: SuiteScore, wanted: Sequence[str]) -> str:
    suite = score.suite
    shown = [e for e in score.entries if e.entry.name in wanted]
    found = {env for e in shown for env in e.columns} | {row.env for row in score.reported}
    envs = [env for env in suite.envs if env in found]
    best = {env: _best_vectors(shown, env) for env in envs}
    marks = _Marks(score.entries)
    rows = [
        [
            marks.title(e, suite.meta_train),
            latex_text(e.entry.inductive_bias),
            *(
                _number(e.columns[env].accuracy, e.entry.name in best[env])
                if env in e.columns
                else LATEX_DASH
                for env in envs
            ),
            LATEX_DASH if e.entry.deterministic else seeds_text(e.entry, len(e.seeds), suite),
        ]
        for e in shown
    ]
    groups: dict[str, list[list[str]]] = {}
    values = {(row.method, row.env): percent(row.accuracy) for row in score.reported}
    about = {row.method: (row.inductive_bias, row.source) for row in score.reported}
    for method, (bias, source) in about.items():
        cells = [values.get((method, env), LATEX_DASH) for env in envs]
        row = [latex_text(method), latex_text(bias), *cells, LATEX_DASH]
        groups.setdefault(source, []).append(row)
    short, _ = headers(envs)
    last = 2 + len(envs)
    head = [
        f"& & \\multicolumn{{{len(envs)}}}{{c}}{{Meta-test on unseen tasks of}} & \\\\",
        f"\\cmidrule(lr){{3-{last}}}",
        _line(["Method", "Inductive bias", *map(latex_text, short), "Seeds"]),
    ]
    caption = (
        f"Accuracy in \\% at step {suite.episode_length - 1}, after {suite.episode_length - 1} "
        f"labelled examples, on {suite.tasks} unseen tasks with {suite.episodes_per_task} episodes "
        f"each ({latex_text(suite.name)}). {_CAPTION_INTERVAL.format('tasks')} {_CAPTION_BOLD} "
        f"Seeds: meta-training seeds.{marks.caption()}"
    )
    aligned = "ll" + "r" * len(envs) + "r"
    return _table("table", caption, f"tab:{suite.name}", aligned, head, rows, groups)


def _best_vectors(shown: Sequence[EntryScore], env: str) -> set[str]:
    """Entries that no other one shown is significantly better than."""
    present = [e for e in shown if env in e.columns]
    if not present:
        return set()
    columns = [e.columns[env] for e in present]
    places = ranks([column.correct for column in columns], columns[0].task)
    return {e.entry.name for e, place in zip(present, places, strict=True) if place == 1}


def _text_table(score: TextSuiteScore, domain: Domain, wanted: Sequence[str]) -> str:
    suite = score.suite
    shown = [e for e in score.rows(domain) if e.entry.name in wanted and e.full(domain)]
    reported = [row for row in score.reported if row.domain == domain]
    found = {s for e in shown for s in e.full(domain)} | {row.setting for row in reported}
    settings = [s for s in suite.settings if s in found]
    best = {s: _best_texts(shown, s, domain) for s in settings}
    marks = _Marks(list(score.entries.values()))
    rows = []
    for e in shown:
        cells = []
        for setting in settings:
            column = e.full(domain).get(setting)
            cells += (
                [LATEX_DASH, LATEX_DASH]
                if column is None
                else [
                    _number(column.mean, e.entry.name in best[setting]),
                    percent(column.worst.mean),
                ]
            )
        rows.append([marks.title(e, suite.name), e.view, *cells])
    groups = _reported_groups(reported, settings)
    ends = range(4, 4 + 2 * len(settings), 2)
    tops = [
        f"\\multicolumn{{2}}{{c}}{{{latex_text(s)} ({len(frozen_tasks(s, domain))})}}"
        for s in settings
    ]
    head = [
        _line(["", "", *tops]),
        " ".join(f"\\cmidrule(lr){{{end - 1}-{end}}}" for end in ends),
        _line(["Method", "View", *["mean", "worst"] * len(settings)]),
    ]
    caption = (
        f"Macro-F1 of classification and accuracy of multi-choice tasks in \\%, {DOMAINS[domain]} "
        f"({latex_text(suite.name)}): mean and worst of {len(suite.demo_seeds)} draws of "
        f"{suite.num_demos} demonstrations, averaged over the tasks, whose number stands beside "
        f"each setting. {_CAPTION_INTERVAL.format('tasks and queries')} {_CAPTION_BOLD}"
        f"{marks.caption()}"
    )
    if missing := [s for s in settings if not same_tasks(s, domain)]:
        names = ", ".join(map(latex_text, missing))
        caption += f" The papers average over more tasks in {names}."
    aligned = "ll" + "rr" * len(settings)
    return _table("table*", caption, f"tab:{suite.name}-{domain}", aligned, head, rows, groups)


def _best_texts(shown: Sequence[TextEntryScore], setting: str, domain: Domain) -> set[str]:
    """The same; none where a single task makes no interval."""
    present = [e for e in shown if setting in e.full(domain)]
    columns = [e.full(domain)[setting] for e in present]
    if not columns or columns[0].resampled.values.shape[1] < 2:
        return set()
    _, worse = text_outcomes(columns)
    return {e.entry.name for e, count in zip(present, worse, strict=True) if not count}


def _reported_groups(
    reported: Iterable[ReportedText], settings: Sequence[str]
) -> dict[str, list[list[str]]]:
    """Source → rows of what it reports."""
    found: dict[tuple[str, str, str, str], dict[str, ReportedText]] = {}
    for row in reported:
        key = (row.source, row.method, row.view, row.training_data)
        found.setdefault(key, {})[row.setting] = row
    groups: dict[str, list[list[str]]] = {}
    for (source, method, view, data), by_setting in found.items():
        cells = []
        for setting in settings:
            row_of = by_setting.get(setting)
            worst = None if row_of is None else row_of.worst
            cells += [LATEX_DASH if row_of is None else percent(row_of.mean)]
            cells += [LATEX_DASH if worst is None else percent(worst)]
        told = f", {data} data" if data not in ("none", "complete") else ""
        groups.setdefault(source, []).append([latex_text(method + told), view, *cells])
    return groups


_CAPTION_INTERVAL = (
    r"$\pm$: 95\,\% interval over {} for the given checkpoints (bootstrap clustered on tasks; the "
    "larger side)."
)
_CAPTION_BOLD = (
    r"Bold: no other entry of the column is significantly better (95\,\% interval of the paired "
    "difference, not corrected for the number of comparisons). Rows are in the order of mean rank "
    "on the board, which the data need not support. Reported numbers are the papers' and were not "
    "compared."
)


class _Marks:
    """What sets entries apart, as numbers above their titles that the caption explains.

    Args:
        entries: All entries of the board: where their titles repeat, names are added.
    """

    def __init__(self, entries: Sequence[AnyEntryScore]) -> None:
        self.numbers: dict[str, int] = {}
        self.counts = Counter(e.entry.title for e in entries)

    def title(self, score: AnyEntryScore, meta_train: str) -> str:
        """Title with the numbers of its marks."""
        found = row_marks(score, meta_train)
        numbers = [str(self.numbers.setdefault(m, len(self.numbers) + 1)) for m in found]
        above = f"\\textsuperscript{{{','.join(numbers)}}}" if numbers else ""
        title, name = score.entry.title, score.entry.name
        return latex_text(f"{title} ({name})" if self.counts[title] > 1 else title) + above

    def caption(self) -> str:
        """A sentence of all marks so far; empty if there are none."""
        told = (f"\\textsuperscript{{{n}}}{latex_text(mark)}" for mark, n in self.numbers.items())
        return f" {', '.join(told)}." if self.numbers else ""


def _number(interval: Interval, bold: bool) -> str:
    mean = percent(interval.mean)
    shown = f"\\textbf{{{mean}}}" if bold else mean
    half = interval.half_width
    # NaN: a single task has no interval.
    return shown if half != half else f"{shown} {{\\scriptsize$\\pm$\\,{percent(half)}}}"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _table(
    kind: str,
    caption: str,
    label: str,
    aligned: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    groups: Mapping[str, Sequence[Sequence[str]]],
) -> str:
    """A whole table environment; reported rows stand below a rule, group by group."""
    lines = [r"\toprule", *head]
    if rows:
        lines += [r"\midrule", *map(_line, rows)]
    for source, reported in groups.items():
        title = f"\\multicolumn{{{len(aligned)}}}{{l}}{{\\emph{{Reported: {latex_text(source)}}}}}"
        lines += [r"\midrule", f"{title} \\\\", *map(_line, reported)]
    lines.append(r"\bottomrule")
    return "\n".join(
        [
            f"\\begin{{{kind}}}",
            r"\centering",
            r"\footnotesize\setlength{\tabcolsep}{3pt}",
            f"\\caption{{{caption}}}",
            f"\\label{{{label}}}",
            f"\\begin{{tabular}}{{{aligned}}}",
            *lines,
            r"\end{tabular}",
            f"\\end{{{kind}}}",
        ]
    )
