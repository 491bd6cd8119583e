"""One learner on one environment, run again: on what is frozen, and on what nobody has seen.

On vectors fresh means as many episodes of other tasks, on text other draws of demonstrations: a
text environment has no further test tasks.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from baselines.rebuild import ReplayError
from icl_bench.catalog import TextSuite
from icl_bench.data.images import MissingDataError
from icl_bench.data.text import DEMO_SEEDS
from icl_bench.envs.text_source import TextArgs, TextSource
from icl_bench.evaluation.learner import Learner, call_learner
from icl_bench.evaluation.statistics import ROUNDING, Interval, task_means
from icl_bench.evaluation.text_protocol import TextLearner, evaluate_text, text_checksum
from icl_bench.evaluation.text_result import TaskResult
from icl_bench.leaderboard.plausibility import first_step_p
from icl_bench.leaderboard.predictions import Predictions
from icl_bench.leaderboard.replays import ReplayCell
from icl_bench.leaderboard.text_predictions import TextPredictions

# Fresh episodes begin after those of any protocol: their tasks are 65,536 and up.
FRESH_FROM = 2**20
FRESH_DEMO_SEEDS = tuple(1000 + seed for seed in DEMO_SEEDS)

LEVEL, BATCH = 0.95, 64
# Of the interval by which a learner counts as tuned, over all cells of an entry: one honest entry
# in 2,000 is. At 95 % it were one in 40, and boards have dozens, which meet the same frozen tasks:
# where these are easy by chance, all look tuned.
TUNED_LEVEL = 0.999
# Metrics are counted in steps, so two or three tasks may differ by the very same amount; that does
# not make the amount certain. The least standard deviation of differences on text.
LEAST_SPREAD = 0.005


@dataclasses.dataclass(frozen=True)
class Rerun:
    """What one learner does on one environment.

    Attributes:
        differing: Share of the frozen predictions that differ from those handed in.
        frozen: What is scored of each frozen task: the accuracy at the last step, or the task's
            metric averaged over the demonstration seeds.
        fresh: The same of the fresh tasks; on text of the same tasks, in their order.
        first_step_p: See ``ReplayCell``.
    """

    differing: float
    frozen: Float[np.ndarray, " K"]
    fresh: Float[np.ndarray, " L"]
    first_step_p: float | None

    def gap(self, level: float = LEVEL) -> Interval:
        """Frozen less fresh: of independent tasks by Welch's t, on text paired by task."""
        if self.first_step_p is not None:
            return welch(self.frozen, self.fresh, level)
        return paired_t(self.frozen - self.fresh, level)

    def cell(self, num_cells: int) -> ReplayCell:
        """The cell of a record; ``tuned`` is decided for all cells of an entry together."""
        strict = self.gap(1 - (1 - TUNED_LEVEL) / num_cells)  # Bonferroni
        return ReplayCell(
            self.differing,
            float(self.frozen.mean()),
            float(self.fresh.mean()),
            self.gap(),
            self.first_step_p,
            tuned=bool(strict.low > ROUNDING),
        )


def welch(a: Float[np.ndarray, " K"], b: Float[np.ndarray, " L"], level: float) -> Interval:
    """The t interval of mean(a) - mean(b) for independent values of unequal variance.

    With the degrees of freedom of Welch and Satterthwaite; a width of zero where neither group
    varies.
    """
    parts = [(float(v.var(ddof=1)) / len(v), len(v) - 1) for v in (a, b)]
    variance = sum(part for part, _ in parts)
    # Where nothing varies, any number of degrees gives a width of zero.
    degrees = variance**2 / sum(part**2 / n for part, n in parts) if variance else 1.0
    return _t_interval(float(a.mean() - b.mean()), variance, degrees, level)


def paired_t(difference: Float[np.ndarray, " K"], level: float) -> Interval:
    """The t interval of the mean of differences by task; without bounds for a single task.

    No bootstrap: its 10,000 replicates do not reach as far out as a level of 99.9 % asks for.
    """
    num, mean = len(difference), float(difference.mean())
    if num < 2:
        return Interval(mean, math.nan, math.nan)
    variance = max(float(difference.var(ddof=1)), LEAST_SPREAD**2)
    return _t_interval(mean, variance / num, float(num - 1), level)


def _t_interval(mean: float, variance: float, degrees: float, level: float) -> Interval:
    """A mean of this variance with its t interval."""
    from scipy.special import stdtrit

    half = float(stdtrit(degrees, (1 + level) / 2)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def rerun_vectors(learner: Learner, env: Any, handed_in: Predictions) -> Rerun:
    """Predict the frozen episodes again, and as many of fresh tasks.

    Args:
        learner: The learner.
        env: The unwrapped environment, split ``unseen``.
        handed_in: The predictions to compare with.

    Raises:
        ReplayError: If the learner cannot predict these episodes.
    """
    count = len(handed_in.prediction)
    try:
        predicted, labels, tasks = _predict(learner, env, 0, count)
        fresh, fresh_labels, fresh_tasks = _predict(learner, env, FRESH_FROM, count)
    except Exception as error:  # whatever a learner from a stranger's file meets
        raise ReplayError(f"it cannot predict {env.source.spec.id}: {error}") from error
    return Rerun(
        float((predicted != handed_in.prediction).mean()),
        task_means((predicted == labels)[:, -1], tasks)[1],
        task_means((fresh == fresh_labels)[:, -1], fresh_tasks)[1],
        first_step_p(
            fresh[None, :, 0], fresh_labels[:, 0], fresh_tasks, env.source.spec.num_classes
        ),
    )


def _predict(
    learner: Learner, env: Any, first: int, count: int
) -> tuple[Int[np.ndarray, "E T"], Int[np.ndarray, "E T"], Int[np.ndarray, " E"]]:
    """Predictions and labels of these episodes, and the episodes' tasks."""
    parts: list[tuple[np.ndarray, ...]] = []
    for start in range(first, first + count, BATCH):
        batch = env.episodes(range(start, min(start + BATCH, first + count)))
        logits = call_learner(learner, batch.x, batch.prev_y, batch.num_classes)
        found = (logits.argmax(dim=-1), batch.y, batch.task_id)
        parts.append(tuple(values.cpu().numpy() for values in found))
    predicted, labels, tasks = (np.concatenate(part) for part in zip(*parts, strict=True))
    return predicted, labels, tasks


def rerun_text(
    learner: TextLearner,
    env: str,
    handed_in: TextPredictions,
    suite: TextSuite,
    data_dir: str | None = None,
) -> Rerun:
    """Answer the queries handed in again, and after other demonstrations.

    Args:
        learner: The learner.
        env: Text environment.
        handed_in: The predictions to compare with.
        suite: The suite that they are of.
        data_dir: Data folder that is looked in first.

    Raises:
        MissingDataError: If a task is not at hand, or as another copy.
        ReplayError: If other queries were handed in than an evaluation asks, or the learner cannot
            answer them.
    """
    at_hand = TextSource(env, TextArgs("unseen"), data_dir=data_dir)
    for task in handed_in.tasks:
        if task not in at_hand.tasks:
            raise MissingDataError(f"the task {task} is not at hand")
        if at_hand.checksum(task) != text_checksum(task):
            raise MissingDataError(f"the task {task} is at hand as another copy")
    frozen = _answers(learner, env, handed_in, suite.demo_seeds, data_dir)
    differing = [
        answered.prediction != part.prediction
        for answered, part in zip(frozen, handed_in.tasks.values(), strict=True)
    ]
    fresh = _answers(learner, env, handed_in, FRESH_DEMO_SEEDS, data_dir)
    return Rerun(
        float(np.concatenate([part.ravel() for part in differing]).mean()),
        _metrics(frozen),
        _metrics(fresh),
        None,
    )


def _metrics(tasks: Sequence[TaskResult]) -> Float[np.ndarray, " K"]:
    """The metric of each task, averaged over the demonstration seeds."""
    return np.array([task.predictions.values().mean() for task in tasks])


def _answers(
    learner: TextLearner,
    env: str,
    handed_in: TextPredictions,
    demo_seeds: Sequence[int],
    data_dir: str | None,
) -> list[TaskResult]:
    """The learner's answers, task by task."""
    found: list[TaskResult] = []
    for task, part in handed_in.tasks.items():
        try:
            result = evaluate_text(
                learner,
                env,
                tasks=[task],
                num_queries=len(part.query),
                demo_seeds=demo_seeds,
                data_dir=data_dir,
            )
        except MissingDataError:
            raise
        except Exception as error:  # whatever a learner from a stranger's file meets
            raise ReplayError(f"it cannot answer {task}: {error}") from error
        if not np.array_equal(result.tasks[0].query, part.query):
            raise ReplayError(f"{task}: other queries were handed in than an evaluation asks")
        found += result.tasks
    return found
