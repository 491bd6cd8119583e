"""Comparisons of rows: with every other entry, pair by pair, and with the numbers of papers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from icl_bench.data.text import text_setting
from icl_bench.envs.text_source import Domain
from icl_bench.evaluation.statistics import ROUNDING, Interval, ranks
from icl_bench.evaluation.text_metrics import Resampled
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.scoring import SuiteScore
from icl_bench.leaderboard.text_columns import DOMAINS, TextColumn, frozen_tasks, places
from icl_bench.leaderboard.text_scoring import ReportedText, TextEntryScore, TextSuiteScore


@dataclasses.dataclass(frozen=True)
class Pairs:
    """An entry against others: one comparison for each other entry of a column.

    Attributes:
        better: Comparisons in which the entry is significantly better.
        worse: Comparisons in which the other is.
        tied: Comparisons that the data do not decide.
        won: Comparisons in which the entry's number is higher, significantly or not; one half
            where both are equal.
    """

    better: int = 0
    worse: int = 0
    tied: int = 0
    won: float = 0.0

    def __add__(self, other: "Pairs") -> "Pairs":
        return Pairs(
            self.better + other.better,
            self.worse + other.worse,
            self.tied + other.tied,
            self.won + other.won,
        )

    def __str__(self) -> str:
        """For instance ``+12 −3 =5``."""
        return f"+{self.better} −{self.worse} ={self.tied}"

    @property
    def win_rate(self) -> float | None:
        """Share of comparisons won, in [0, 1]; None if there is none."""
        total = self.better + self.worse + self.tied
        return self.won / total if total else None


# Column (environment or setting) → entry → its comparisons in that column.
PairTable: TypeAlias = Mapping[str, Mapping[str, Pairs]]


def vector_pairs(score: SuiteScore) -> dict[str, dict[str, Pairs]]:
    """Comparisons on the ranked episodes of each column, by the intervals that make the ranks."""
    table = {}
    for env in score.suite.envs:
        columns = {e.entry.name: e.columns[env] for e in score.entries if env in e.columns}
        worse = [score.ranks[env][name] - 1 for name in columns]
        better = []
        if columns:
            task = next(iter(columns.values())).task
            # Turned around, the entries that are better are those that were worse.
            better = [rank - 1 for rank in ranks([-c.correct for c in columns.values()], task)]
        means = [column.accuracy.mean for column in columns.values()]
        table[env] = _pairs(list(columns), means, better, worse)
    return table


def text_pairs(score: TextSuiteScore, domain: Domain) -> dict[str, dict[str, Pairs]]:
    """Comparisons of the ranked entries of each setting, by the intervals that make the ranks."""
    table = {}
    for setting in score.suite.settings:
        columns = {
            name: score.entries[name].columns[domain][setting]
            for name in score.ranks[domain][setting]
        }
        means = [column.mean.mean for column in columns.values()]
        better, worse = text_outcomes(list(columns.values()))
        table[setting] = _pairs(list(columns), means, better, worse)
    return table


def text_outcomes(columns: Sequence[TextColumn]) -> tuple[list[int], list[int]]:
    """Of each column, how many others it is significantly better and worse than; same queries.

    Raises:
        ValueError: If there are fewer than two tasks.
    """
    found = [column.resampled for column in columns]
    # Turned around, the entries that are better are those that were worse.
    turned = [Resampled(-r.values, -r.replicates) for r in found]
    return [place - 1 for place in places(turned)], [place - 1 for place in places(found)]


def _pairs(
    names: Sequence[str], means: Sequence[float], better: Sequence[int], worse: Sequence[int]
) -> dict[str, Pairs]:
    values, others = np.array(means), len(names) - 1
    found = {}
    for i, name in enumerate(names):
        ahead = int((values[i] > values + ROUNDING).sum())
        equal = int((np.abs(values[i] - values) <= ROUNDING).sum()) - 1  # it equals itself
        tied = others - better[i] - worse[i]
        found[name] = Pairs(better[i], worse[i], tied, ahead + equal / 2)
    return found


def total_pairs(table: PairTable, name: str) -> Pairs:
    """An entry's comparisons in all columns together."""
    return sum((row[name] for row in table.values() if name in row), Pairs())


@dataclasses.dataclass(frozen=True)
class PaperNumber:
    """A number of a paper beside ours, in [0, 1].

    Attributes:
        paper: The paper's.
        ours: Ours.
        difference: Ours − the paper's, with our interval, for papers give none for theirs; None
            where the two are about different tasks.
    """

    paper: float
    ours: Interval
    difference: Interval | None


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """An entry beside what a paper reports of the method with its title.

    Attributes:
        entry: About the entry.
        source: Paper and table.
        domain: Of text: which test tasks; None for vectors.
        columns: Environment or setting → accuracy, or the mean over demonstration seeds.
        worst: Setting → the worst demonstration seed, where the paper has it.
    """

    entry: EntryInfo
    source: str
    domain: Domain | None
    columns: Mapping[str, PaperNumber]
    worst: Mapping[str, PaperNumber]


def vector_papers(score: SuiteScore) -> list[PaperRow]:
    """Entries with the title of a method that a paper reports, in the order of the rows."""
    rows = []
    for e in score.entries:
        by_source: dict[str, dict[str, PaperNumber]] = {}
        for row in score.reported:
            column = e.columns.get(row.env)
            if row.method.casefold() == e.entry.title.casefold() and column is not None:
                found = by_source.setdefault(row.source, {})
                found[row.env] = _beside(row.accuracy, column.accuracy)
        rows += [PaperRow(e.entry, source, None, found, {}) for source, found in by_source.items()]
    return rows


def text_papers(score: TextSuiteScore) -> list[PaperRow]:
    """The same on text: title, view and training data must be those of the paper's row.

    Only columns that an entry answered in full. Where tasks of the paper are not frozen, no
    difference is taken.
    """
    rows = []
    for domain in DOMAINS:
        for e in score.rows(domain):
            by_source: dict[str, list[ReportedText]] = {}
            for row in score.reported:
                if row.domain == domain and _same_method(e, row):
                    by_source.setdefault(row.source, []).append(row)
            for source, found in by_source.items():
                columns, worst = {}, {}
                for row in found:
                    column = e.full(domain).get(row.setting)
                    if column is None:
                        continue
                    same = same_tasks(row.setting, domain)
                    columns[row.setting] = _beside(row.mean, column.mean, same)
                    if row.worst is not None:
                        worst[row.setting] = _beside(row.worst, column.worst, same)
                if columns:
                    rows.append(PaperRow(e.entry, source, domain, columns, worst))
    return rows


def same_tasks(setting: str, domain: Domain) -> bool:
    """Whether the frozen tasks of a setting are all those that papers average over."""
    whole = text_setting(setting)
    tasks = whole.test if domain == "all" else whole.unseen_domain
    return len(frozen_tasks(setting, domain)) == len(tasks)


def _same_method(score: TextEntryScore, row: ReportedText) -> bool:
    ours = (score.entry.title.casefold(), score.view, training_data(score.entry))
    return ours == (row.method.casefold(), row.view, row.training_data)


def training_data(entry: EntryInfo) -> str:
    """How much of the meta-training data an entry used, in the papers' words; empty if unknown.

    ``limited`` is a tenth of each training task. Source: Sinha et al. 2024, §4.
    """
    if entry.meta_train is None:
        return "none"
    fraction = entry.meta_train_kwargs.get("fraction", 1.0)
    return {"1.0": "complete", "1": "complete", "0.1": "limited"}.get(str(fraction), "")


def _beside(paper: float, ours: Interval, same: bool = True) -> PaperNumber:
    bounds = (ours.mean, ours.low, ours.high)
    return PaperNumber(paper, ours, Interval(*(v - paper for v in bounds)) if same else None)
