"""Tables for the terminal of results on text, straight from run folders."""

from collections.abc import Mapping, Sequence

import numpy as np

from icl_bench.data.text import DEMO_SEEDS, NUM_DEMOS
from icl_bench.envs.text_source import Domain
from icl_bench.evaluation.text_metrics import Summary, average, resample, task_summary
from icl_bench.evaluation.text_protocol import text_checksum, text_suite
from icl_bench.evaluation.text_result import TaskResult, TextResult
from icl_bench.leaderboard.formatting import DASH, percent, plain_table, plus_minus, signed
from icl_bench.leaderboard.runs import Run, methods_of, text_by_seed
from icl_bench.leaderboard.text_columns import (
    DOMAINS,
    TextColumn,
    domain_tasks,
    frozen_tasks,
    score_methods,
)
from icl_bench.leaderboard.text_render import text_cell
from icl_bench.registration import find_text_spec, registry


def board_from_text_runs(runs: Sequence[Run], suite: str | None = None) -> str:
    """Tables of all test tasks and of those of unseen domains; nothing is ranked.

    Several runs of one method are its meta-training seeds and its settings.

    Args:
        runs: Run folders that were read.
        suite: Show this text suite's settings only.

    Raises:
        ValueError: If there is nothing to show, runs of one name differ in their settings, or
            seeds of a method are not about the same queries.
    """
    found = [result.env for run in runs for result in run.text]
    known = list(registry) if suite is None else list(text_suite(suite).envs)
    envs = [env for env in known if env in found]
    if not envs:
        raise ValueError(
            f"no results on text{f' of {suite}' if suite else ''} in "
            f"{', '.join(str(run.path) for run in runs) or 'no runs'}: evaluate them first"
        )
    methods = methods_of([run for run in runs if run.text])
    results: dict[str, dict[str, list[TextResult]]] = {}
    notes: list[str] = []
    for method in sorted(methods, key=lambda method: method.name):
        by_seed = text_by_seed(method.runs)
        results[method.title] = by_env = {
            env: [found[env] for found in by_seed.values() if env in found] for env in envs
        }
        for env, of_seeds in by_env.items():
            told = _notes(of_seeds, len(by_seed)) if of_seeds else []
            notes += [f"{method.name}: {env}: {note}" for note in told]
    settings = list(dict.fromkeys(find_text_spec(env).setting for env in envs))
    parts = ["macro-F1 or accuracy (%): mean over demonstration seeds ± 95 % interval / worst"]
    for domain, words in DOMAINS.items():
        columns = {setting: _columns(results, setting, domain) for setting in settings}
        rows = [
            [title, view, *cells]
            for title in results
            for view in ("direct", "channel")
            if set(cells := [text_cell(columns[s].get((title, view))) for s in settings]) != {DASH}
        ]
        if rows:
            parts += [words, plain_table(["method", "view", *settings], rows)]
    return "\n\n".join([*parts, *notes])


def tasks_from_text_runs(runs: Sequence[Run], suite: str | None = None) -> str:
    """A row for each method and task, with intervals over the task's queries.

    Raises:
        ValueError: If there is nothing to show.
    """
    rows = []
    for run in runs:
        for result in run.text:
            if suite is not None and result.env not in text_suite(suite).envs:
                continue
            view = find_text_spec(result.env).prompt_view
            for task in result.tasks:
                summary = task_summary(task.predictions)
                cell = f"{plus_minus(summary.mean)} / {percent(summary.worst.mean)}"
                name = (run.entry.title, view, str(run.entry.seed), task.task, task.metric)
                rows.append([*name, cell, str(len(task.query))])
    if not rows:
        raise ValueError("no results on text in these runs: evaluate them first")
    told = "mean over demonstration seeds (%) ± 95 % interval over queries / worst"
    heads = ["method", "view", "seed", "task", "metric", "mean / worst", "queries"]
    return f"{told}\n\n{plain_table(heads, sorted(rows, key=lambda r: (r[3], r[0], r[2])))}"


def gains_from_text_runs(
    runs: Sequence[Run], others: Sequence[Run], suite: str | None = None
) -> str:
    """What each method has more than another one, paired on the queries that both answered.

    Several runs of one method are its meta-training seeds, of which the mean is compared.

    Args:
        runs: Run folders that were read.
        others: The runs of the method to compare with.
        suite: Compare on this text suite's settings only.

    Raises:
        ValueError: If no run has tasks of the other one, or their queries differ.
    """
    paths = {other.path.resolve() for other in others}
    ours = [run for run in runs if run.text and run.path.resolve() not in paths]
    if not ours:
        raise ValueError(f"{others[0].path} is compared with itself: give other runs")
    theirs = text_by_seed(others)
    rows = []
    for method in methods_of(ours):
        by_seed = text_by_seed(method.runs)
        seeds = " ".join(map(str, sorted(by_seed)))
        for env in dict.fromkeys(env for by_env in by_seed.values() for env in by_env):
            if suite is not None and env not in text_suite(suite).envs:
                continue
            for domain, words in DOMAINS.items():
                answered = [domain_tasks(o[env], domain) for o in by_seed.values() if env in o]
                gain = _gain(answered, _of_setting(theirs, find_text_spec(env).setting, domain))
                if gain is not None:
                    cells = [plus_minus(x, signed(x.mean)) for x in (gain[1].mean, gain[1].worst)]
                    rows.append([method.title, seeds, env, words, str(gain[0]), *cells])
    if not rows:
        raise ValueError(f"{others[0].path} has no two tasks in common with the other runs")
    told = f"percentage points more than {others[0].entry.title}"
    if len(theirs) > 1:
        told += f" (mean of seeds {', '.join(map(str, sorted(theirs)))})"
    heads = ["method", "seeds", "environment", "", "tasks", "mean", "worst"]
    return f"{told}, paired; ± is the 95 % interval\n\n{plain_table(heads, rows)}"


def _of_setting(
    by_seed: Mapping[int, Mapping[str, TextResult]], setting: str, domain: Domain
) -> list[list[TaskResult]]:
    """The tasks of a setting, in either view, of every seed that has it."""
    return [
        domain_tasks(result, domain)
        for by_env in by_seed.values()
        for result in by_env.values()
        if find_text_spec(result.env).setting == setting
    ]


def _gain(
    ours: Sequence[Sequence[TaskResult]], theirs: Sequence[Sequence[TaskResult]]
) -> tuple[int, Summary] | None:
    """Number of common tasks, and the mean over seeds of ours - theirs; None if too few."""
    by_name = [{task.task: task for task in tasks} for tasks in (*ours, *theirs)]
    common = [name for name in by_name[0] if all(name in other for other in by_name)]
    if not theirs or len(common) < 2:
        return None
    for name in common:
        first = by_name[0][name]
        for task in (tasks[name] for tasks in by_name[1:]):
            if task.checksum != first.checksum or not np.array_equal(task.query, first.query):
                raise ValueError(f"{name}: other queries were asked, so nothing is paired")
    found = resample([[tasks[name].predictions for name in common] for tasks in by_name])
    gain = average(found[: len(ours)]) - average(found[len(ours) :])
    return len(common), gain.summary()


def _columns(
    results: Mapping[str, Mapping[str, Sequence[TextResult]]], setting: str, domain: Domain
) -> dict[tuple[str, str], TextColumn]:
    """(title of the method, view) → score on one setting and domain."""
    answered: dict[tuple[str, str], list[list[TaskResult]]] = {}
    for title, by_env in results.items():
        for env, of_seeds in by_env.items():
            spec, tasks = find_text_spec(env), [domain_tasks(r, domain) for r in of_seeds]
            if spec.setting == setting and any(tasks):
                answered[title, spec.prompt_view] = tasks
    return score_methods(answered, setting, domain)


def _notes(of_seeds: Sequence[TextResult], num_seeds: int) -> list[str]:
    """What a reader must know of one method's numbers on one environment."""
    first, notes = of_seeds[0], []
    if len(of_seeds) < num_seeds:
        notes.append(f"only {len(of_seeds)} of {num_seeds} meta-training seeds have it.")
    if not first.full:
        notes.append(f"{first.coverage}.")
    if (first.labels, first.k, first.demo_seeds) != ("true", NUM_DEMOS, DEMO_SEEDS):
        seeds = ", ".join(map(str, first.demo_seeds))
        notes.append(
            f"not the standard evaluation: {first.labels} labels, {first.k} demonstrations, "
            f"seeds {seeds}."
        )
    frozen = frozen_tasks(find_text_spec(first.env).setting, "all")
    checksums = {task.task: task.checksum for task in first.tasks if task.task in frozen}
    changed = [task for task, checksum in checksums.items() if checksum != text_checksum(task)]
    if changed:
        notes.append(f"other data than the frozen ones: {', '.join(changed)}.")
    return notes
