"""What a difficulty card says of an environment whoever has handed in: sizes, balance, licence."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, UInt8

from icl_bench.data.images import dataset
from icl_bench.data.text import DEMO_SEEDS, NUM_DEMOS, text_setting, text_task
from icl_bench.envs.text import episode_text
from icl_bench.envs.text_source import TextSource, text_args
from icl_bench.evaluation.protocol import EXTENDED_EPISODES, frozen_labels
from icl_bench.evaluation.text_protocol import scorable_tasks, text_answers, text_options
from icl_bench.leaderboard.formatting import DASH, markdown_table, markdown_text, percent
from icl_bench.registration import EnvSpec, TextEnvSpec, view_of
from icl_bench.tasks.prompts import PromptFormat

# Demonstrations of the example prompt: all of the protocol's would fill the page.
SHOWN_DEMOS = 4


def vector_facts(spec: EnvSpec) -> dict[str, str]:
    """Name of a fact → Markdown, for an environment of vectors."""
    row, view = dataset(spec.base), view_of(spec)
    counts = " and ".join(f"{n:,} {split}" for split, n in row.counts.items())
    facts = {
        "Inputs": f"{markdown_text(row.title)}; {view.title}, projected",
        "Size": f"D = {spec.num_features:,}, C = {spec.num_classes}, T = {spec.episode_length}; "
        + (f"{counts} examples" if counts else "examples are made from the task's key"),
        "Class balance": _class_balance(spec),
    }
    return facts | {"Licence": markdown_text(row.licence)} if row.licence else facts


def _class_balance(spec: EnvSpec) -> str:
    try:
        labels = frozen_labels(spec.id, EXTENDED_EPISODES)
    except LookupError:
        return "not known, for this version holds no frozen labels"
    same, most = label_balance(labels)
    return (
        f"{percent(same)} % of the pairs of an episode's examples have the same label, with "
        f"equally frequent classes {percent(1 / spec.num_classes)} %; its most frequent label has "
        f"{percent(most)} %"
    )


def label_balance(labels: UInt8[np.ndarray, "E T"]) -> tuple[float, float]:
    """How often two examples of an episode share a label, and the share of its largest class.

    Both are means over episodes, in [0, 1]. Drawn without replacement, the first is an unbiased
    estimate of the sum of squared class shares; no permutation of the classes changes it.
    """
    length = labels.shape[1]
    classes = np.arange(int(labels.max()) + 1)
    counts = (labels[:, :, None] == classes).sum(axis=1)
    same = (counts * (counts - 1)).sum(axis=1) / (length * (length - 1))
    return float(same.mean()), float(counts.max(axis=1).mean() / length)


def text_facts(spec: TextEnvSpec) -> tuple[dict[str, str], str]:
    """Name of a fact → Markdown, and the table of test tasks, for a text environment.

    The channel view has the tasks of the direct one, where the table stands.
    """
    setting = text_setting(spec.setting)
    frozen = scorable_tasks(setting.name)
    order = {"direct": "the answer given the input", "channel": "the input given the answer"}
    metrics = Counter(text_task(task).metric for task in setting.test)
    answers = {task: text_answers(task) for task in frozen}
    facts = {
        "View": f"{spec.prompt_view}: {order[spec.prompt_view]}",
        "Tasks": f"{len(setting.train)} to meta-train on; {len(setting.test)} to test on, "
        f"{len(setting.unseen_domain)} of them of unseen domains, {len(frozen)} with frozen "
        "answers",
        "Metrics": ", ".join(f"{metric} of {n} tasks" for metric, n in metrics.items()),
    }
    if frozen:
        options = np.concatenate([text_options(task) for task in frozen])
        shares = [_most_frequent(answer) for answer in answers.values()]
        facts |= {
            "Size": f"{sum(map(len, answers.values())):,} frozen queries, each after "
            f"{len(DEMO_SEEDS)} draws of {NUM_DEMOS} demonstrations; {options.min()} to "
            f"{options.max()} options",
            "Label balance": f"the most frequent answer of a task is {percent(min(shares))} to "
            f"{percent(max(shares))} % of its queries (median "
            f"{percent(float(np.median(shares)))} %)",
        }
    if spec.prompt_view == "channel":
        direct = f"{spec.setting}-ICL-v{spec.version}"
        return facts | {"Test tasks": f"those of [{direct}](#{direct.lower()})"}, ""
    rows = [_task_row(task, answers) for task in setting.test]
    columns = ["Test task", "Metric", "Licence", "Queries", "Options", "Most frequent answer (%)"]
    return facts, markdown_table(columns, rows, 3)


def _task_row(name: str, answers: Mapping[str, Int[np.ndarray, " N"]]) -> list[str]:
    task = text_task(name)
    about = [f"`{name}`", task.metric, markdown_text(task.licence) if task.licence else DASH]
    if name not in answers:
        return [*about, *[DASH] * 3]
    options = text_options(name)
    few, many = int(options.min()), int(options.max())
    told = str(few) if few == many else f"{few} to {many}"
    return [*about, f"{len(options):,}", told, percent(_most_frequent(answers[name]))]


def _most_frequent(answer: Int[np.ndarray, " N"]) -> float:
    return float(np.bincount(answer).max() / len(answer))


def example_prompt(spec: TextEnvSpec) -> str:
    """The first query of the first test task with its options; empty but for embedded tasks.

    Other tasks' texts are not everywhere, and a page must be the same everywhere.
    """
    if text_task(text_setting(spec.setting).test[0]).source != "embedded":
        return ""
    source = TextSource(spec.id, text_args(split="unseen", k=SHOWN_DEMOS))
    return episode_text(PromptFormat(source.view), source.episodes([0])[0])
