"""What is particular about submissions of text suites: frozen answers, views, meta-training."""

from collections.abc import Mapping, Sequence

import numpy as np

from icl_bench.catalog import TextSuite
from icl_bench.evaluation.text_protocol import scorable_tasks, text_answers, text_checksum
from icl_bench.evaluation.text_result import TaskResult, TextResult
from icl_bench.leaderboard.runs import OWN_ENV, Run, own_environment
from icl_bench.registration import find_text_spec


def view_of(envs: Sequence[str]) -> str:
    """The view that all environments have, ``ICL`` or ``Channel``.

    Raises:
        ValueError: If there are both.
    """
    views = {find_text_spec(env).view for env in envs}
    if len(views) > 1:
        raise ValueError(
            f"views are mixed ({', '.join(envs)}): an entry is direct (ICL) or channel, "
            "hand the two in as two entries"
        )
    return views.pop()


def wanted_envs(by_seed: Mapping[int, Mapping[str, TextResult]], suite: TextSuite) -> list[str]:
    """The environments that a full hand-in has: all settings with answers, in the results' view.

    Raises:
        ValueError: If the results are of both views, or none is of the suite.
    """
    envs = [env for by_env in by_seed.values() for env in by_env if env in suite.envs]
    if not envs:
        raise ValueError(f"no run has results of {suite.name}: evaluate it first")
    view = view_of(list(dict.fromkeys(envs)))
    settings = [setting for setting in suite.settings if scorable_tasks(setting)]
    return [env for env in suite.envs if _parts(env)[1] == view and _parts(env)[0] in settings]


def _parts(env: str) -> tuple[str, str]:
    spec = find_text_spec(env)
    return spec.setting, spec.view


def common_meta_train(runs: Sequence[Run], suite: TextSuite) -> str | None:
    """What an entry says of meta-training: the suite's name, or None if there was none.

    Raises:
        ValueError: If a run has no text results, was meta-trained on another environment than the
            one that it was evaluated on, or if only some runs were meta-trained.
    """
    for run in runs:
        if not run.text:
            raise ValueError(f"{run.path} has no results of {suite.name}: evaluate it first")
    if all(run.entry.meta_train is None for run in runs):
        return None
    for run in runs:
        if not own_environment(run):
            evaluated = ", ".join(result.env for result in run.text)
            raise ValueError(
                f"{run.path} was meta-trained on {run.entry.meta_train or 'nothing'} and evaluated "
                f"on {evaluated}: in {suite.name} each environment has meta-training of its own "
                "(say --meta-train if that is meant)"
            )
    return suite.name


def common_code(run: Run) -> str:
    """The entry's ``code``, with ``OWN_ENV`` for the environment of meta-training."""
    if not own_environment(run):
        return run.entry.code
    return run.entry.code.replace(str(run.entry.meta_train), OWN_ENV)


def frozen_part(result: TextResult, suite: TextSuite) -> TextResult:
    """The tasks of a result whose answers are frozen, checked against them.

    Raises:
        ValueError: If it was evaluated otherwise than boards ask for, on other data, or if none
            of its tasks is frozen.
    """
    asked = (result.labels, result.k, result.demo_seeds)
    wanted = ("true", suite.num_demos, suite.demo_seeds)
    for name, found, expected in zip(
        ("labels", "k", "demonstration seeds"), asked, wanted, strict=True
    ):
        if found != expected:
            raise ValueError(
                f"{result.env} was evaluated with {name} {found}, boards ask for {expected}: "
                "evaluate it again with no further arguments"
            )
    scorable = scorable_tasks(find_text_spec(result.env).setting)
    tasks = tuple(task for task in result.tasks if task.task in scorable)
    if not tasks:
        raise ValueError(f"{result.env}: this version holds no frozen answers of any of its tasks")
    for task in tasks:
        if not _is_frozen(task):
            raise ValueError(
                f"{result.env}: queries, demonstrations or answers of {task.task} differ from the "
                "frozen ones; the data are another copy, whose predictions cannot be scored"
            )
    return TextResult(result.env, result.labels, result.k, result.demo_seeds, tasks)


def _is_frozen(task: TaskResult) -> bool:
    answers = text_answers(task.task)
    return (
        task.checksum == text_checksum(task.task)
        and task.total == len(answers)
        and np.array_equal(task.answer, answers[task.query])
    )
