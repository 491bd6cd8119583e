"""Marks of rows, and what a board tells of an entry beside its scores."""

from collections.abc import Sequence
from typing import TypeAlias

from icl_bench.evaluation.statistics import ROUNDING
from icl_bench.evaluation.text_protocol import text_suite
from icl_bench.leaderboard.entry import EntryInfo
from icl_bench.leaderboard.formatting import (
    DASH,
    clean_text,
    entry_marks,
    entry_titles,
    folded,
    markdown_table,
    markdown_text,
    number,
)
from icl_bench.leaderboard.scoring import EntryScore
from icl_bench.leaderboard.text_scoring import TextEntryScore
from icl_bench.registration import find_text_spec

AnyEntryScore: TypeAlias = EntryScore | TextEntryScore


def row_marks(score: AnyEntryScore, meta_train: str) -> list[str]:
    """Words for what sets an entry apart: its own disclosures, replays and open questions.

    Args:
        score: The entry.
        meta_train: What the suite's entries are meta-trained on.
    """
    marks = entry_marks(score.entry, meta_train)
    replayed, envs = replayed_envs(score), entry_envs(score)
    if replayed == envs and envs:
        marks.append("replayed")
    elif replayed:
        marks.append(f"replayed in part: {len(replayed)} of {len(envs)} columns")
    if flags_of(score):
        marks.append("needs replay")
    if score.replay and not score.replay.same:
        marks.append("replay differs")
    if score.replay and score.replay.tuned:
        marks.append("worse on fresh tasks")
    return marks


def entry_envs(score: AnyEntryScore) -> list[str]:
    """Ids of the environments that an entry was handed in for."""
    if isinstance(score, EntryScore):
        return list(score.columns)
    return [
        env
        for env in text_suite(score.suite).envs
        if find_text_spec(env).prompt_view == score.view
        and find_text_spec(env).setting in score.columns["all"]
    ]


def replayed_envs(score: AnyEntryScore) -> list[str]:
    """Those on which a replay of every meta-training seed found what was handed in.

    That is the same predictions, and no learner that is tuned to the frozen episodes.
    """
    record = score.replay
    if record is None:
        return []
    cells = [record.cells.get(seed, {}) for seed in score.seeds]
    return [
        env
        for env in entry_envs(score)
        if all(env in by_env and by_env[env].same and not by_env[env].tuned for by_env in cells)
    ]


def flags_of(score: AnyEntryScore) -> tuple[str, ...]:
    """Why an entry needs a replay; nothing once it was replayed in full."""
    if isinstance(score, TextEntryScore) or replayed_envs(score) == entry_envs(score):
        return ()
    return score.flags


def is_doubtful(score: AnyEntryScore) -> bool:
    """Whether an entry needs a replay, or a replay found something else than was handed in."""
    record = score.replay
    return bool(flags_of(score) or (record and (record.tuned or not record.same)))


def taxonomy_of(score: AnyEntryScore) -> dict[str, str]:
    """Environment of meta-training → what the learner does with its tasks.

    As its replay found on seen and unseen tasks. Where that found nothing, ``learns`` can be seen
    from the unseen tasks alone: accuracy rises within their episodes, in the mean over seeds
    (``metrics.taxonomy``). Empty if neither says anything.
    """
    if score.replay and score.replay.taxonomy:
        return {env: clean_text(word) for env, word in score.replay.taxonomy.items()}
    env = score.entry.meta_train
    column = score.columns.get(env) if isinstance(score, EntryScore) and env else None
    learns = column is not None and column.rise is not None and column.rise.low > ROUNDING
    return {str(env): "learns"} if learns else {}


def taxonomy_text(score: AnyEntryScore) -> str:
    """``taxonomy_of`` as a cell; a dash if there is nothing to say."""
    found = taxonomy_of(score)
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{word} ({env})" for env, word in found.items()) or DASH


def about_part(scores: Sequence[AnyEntryScore]) -> str:
    """The table of README.md about what the methods are and cost."""
    titles = entry_titles(score.entry for score in scores)
    rows = []
    for score in scores:
        entry = score.entry
        rows.append(
            [
                titles[entry.name],
                markdown_text(taxonomy_text(score)),
                markdown_text(meta_train_text(entry)),
                markdown_text(entry.external_data),
                markdown_text(entry.hardware),
                DASH if entry.gpu_hours is None else f"{entry.gpu_hours:,.1f}",
                number(entry.parameters),
                number(entry.state_size),
            ]
        )
    columns = ["Method", "Taxonomy", "Meta-trained on", "External data", "Hardware"]
    columns += ["GPU-hours", "Parameters", "State size"]
    return folded("About the methods", [markdown_table(columns, rows, 5)])


def meta_train_text(entry: EntryInfo) -> str:
    """What an entry was meta-trained on."""
    return entry.meta_train or "nothing"


def flagged_parts(scores: Sequence[AnyEntryScore]) -> list[str]:
    """What README.md says of entries that need a replay; nothing if none does."""
    titles = entry_titles(score.entry for score in scores)
    rows = [
        [titles[score.entry.name], "; ".join(map(markdown_text, flags))]
        for score in scores
        if (flags := flags_of(score))
    ]
    if not rows:
        return []
    return [
        "**Needs replay**: something about these predictions is odd, and nobody has run the "
        "learner again yet.",
        markdown_table(["Method", "What is odd"], rows, 2),
    ]
