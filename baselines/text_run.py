"""A run on text: its folder, training, evaluation. ``metaicl`` and ``maml_en_llm`` share it."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file

import icl_bench
from baselines import cli, common, monitor
from baselines.language_model import (
    LanguageModel,
    PromptScorer,
    load_language_model,
    load_trained_state,
    portable_name,
    trained_state,
)
from baselines.meta_update import Update
from baselines.process import processes, rank
from baselines.text_config import TextConfig
from baselines.text_train import Phase, meta_training, text_source, tiny_training, train
from icl_bench.data.text import NUM_DEMOS
from icl_bench.episodes import TextEpisode
from icl_bench.evaluation.journal import ScoreJournal
from icl_bench.evaluation.text_protocol import TextLearner
from icl_bench.evaluation.text_result import TaskResult
from icl_bench.leaderboard.learner_files import SETTINGS, WEIGHTS, write_settings
from icl_bench.leaderboard.runs import load_run, result_path
from icl_bench.leaderboard.tables import board_from_runs
from icl_bench.tasks.prompts import PromptFormat


@dataclasses.dataclass(frozen=True)
class TextMethod:
    """What a program says about its method.

    Attributes:
        name: Of the entry, without the view.
        title: For people, without the view and the model.
        program: How it is run.
        presets: Name → settings.
        inductive_bias: For the leaderboard.
        update: The update of meta-training; None where nothing is meta-trained.
        second_order: Whether it takes gradients of gradients.
        prompt_format: Of the prompts at test.
        k: Number of demonstrations shown at test.
        calibrate: Whether scores are calibrated (PMI).
        adapt: Makes of the scorer one that adapts first; None = as it is.
        check: Raises, before anything is trained, if a test task cannot be evaluated; None = never.
    """

    name: str
    title: str
    program: str
    presets: Mapping[str, Callable[[], Any]]
    inductive_bias: str
    update: Callable[[LanguageModel], Update] | None
    prompt_format: PromptFormat
    second_order: bool = False
    k: int = NUM_DEMOS
    calibrate: bool = False
    adapt: Callable[[LanguageModel, PromptScorer], TextLearner] | None = None
    check: Callable[[str], None] | None = None


# Of a run's settings those that may differ between runs of one method: what is asked is in the
# results.
NO_MATTER = frozenset(
    {"preset", "env", "seed", "track", "log_every", "checkpoint_every", "eval_every"}
    | {"eval_prompts", "deterministic", "domain", "tasks", "queries", "demo_seeds", "labels"}
    | {"batch_tokens"}
)


def command(config: TextConfig, method: TextMethod) -> str:
    """How to make a run like this, see ``cli.command``; folders by their names alone."""
    preset = method.presets[config.preset]()
    return cli.command(method.program, preset, without_folders(config), config.env, NO_MATTER)


Config = TypeVar("Config", bound=TextConfig)


def without_folders(config: Config) -> Config:
    """The same settings with the names of folders instead of the ways to them."""
    start = config.start_from
    return dataclasses.replace(
        config, model=portable_name(config.model), start_from=start and Path(start).resolve().name
    )


def run(config: TextConfig, method: TextMethod) -> None:
    """Train (or go on), then evaluate; see ``common`` for what is written."""
    monitor.check_tracker(config)
    with processes(common.resolve_device(config.device), config.deterministic) as device:
        lm = load_language_model(
            config.model,
            device=device,
            second_order=method.second_order,
            gradient_checkpointing=config.gradient_checkpointing,
            lora_rank=config.lora_rank,
            seed=config.seed,
        )
        _check_limits(config, lm)
        if config.start_from is not None:
            load_trained_state(lm, _weights(Path(config.start_from) / WEIGHTS))
        test = text_source(config, split="unseen", domain=config.domain, labels=config.labels)
        if others := sorted({*config.tasks} - {*test.tasks}):
            raise ValueError(
                f"--tasks: {config.env} has no test tasks {', '.join(others)} at hand; there are "
                f"{', '.join(test.tasks)}"
            )
        for task in config.tasks or test.tasks:  # what is missing is missed before the training
            for seed in config.demo_seeds:
                test.queries(task, seed)
            if method.check is not None:
                method.check(task)
        phases: list[Phase] = []
        if config.trains_tiny:
            phases.append(tiny_training(config, lm))
        if method.update is not None and config.steps:
            phases.append(meta_training(config, lm, method.update(lm), method.name))
        trained = bool(phases) or config.start_from is not None
        entry = _entry(config, method, lm, trained=trained)
        if rank() > 0:
            train(config, lm, phases, None)
            return
        print(f"{config.env}: {test.coverage}")
        with (
            common.open_run(config, entry, method.program) as opened,
            monitor.tracked(config, opened) as folder,
        ):
            about = {"language_model": dict(lm.identity), "coverage": str(test.coverage)}
            common.add_meta(folder, **about, text_versions=_versions())
            hours = train(config, lm, phases, folder)
            common.add_gpu_hours(folder, entry, hours)
            named = without_folders(config)
            if trained:
                state = {name: t.contiguous() for name, t in trained_state(lm).items()}
                common.save_learner(folder.path / WEIGHTS, state, method.name, named, **about)
            else:  # the same file for every setting that one method is evaluated on
                left_out = (NO_MATTER | common.PLACES) - {"seed"}
                settings = {k: v for k, v in dataclasses.asdict(named).items() if k not in left_out}
                write_settings(folder.path / SETTINGS, method.name, settings)
            evaluate(config, method, lm, folder)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file.

    Raises:
        ValueError: If it is damaged or none, naming it.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"--start-from: {path} holds no weights: {error}") from error


def _versions() -> dict[str, str]:
    """Of what scores of a language model depend on."""
    names = ("torch", "transformers", "tokenizers", "gguf", "peft")
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def uses_bf16(config: TextConfig, lm: LanguageModel) -> bool:
    """Whether training computes in bfloat16."""
    gpu = next(lm.model.parameters()).device.type == "cuda"
    return config.precision == "bf16" or (config.precision == "auto" and gpu)


def _check_limits(config: TextConfig, lm: LanguageModel) -> None:
    common.require(
        config.total_limit <= lm.context,
        "total_limit",
        config.total_limit,
        f"at most {lm.context}, the most tokens that {lm.name} reads",
    )


def _entry(config: TextConfig, method: TextMethod, lm: LanguageModel, *, trained: bool) -> Any:
    channel = method.prompt_format.view == "channel"
    sizes = [p.numel() for p in lm.model.parameters() if p.requires_grad]
    return common.entry(
        config,
        name=f"channel-{method.name}" if channel else method.name,
        title=f"{'Channel ' * channel}{method.title} ({lm.name.rpartition('/')[2]})",
        inductive_bias=method.inductive_bias,
        code=command(config, method),
        meta_train=config.env if trained else None,
        meta_train_kwargs=config.meta_train_kwargs() if trained else {},
        parameters=sum(sizes) if trained else 0,
        state_size=None,
        external_data=lm.external_data,
        deterministic=not trained,
    )


def evaluate(
    config: TextConfig, method: TextMethod, lm: LanguageModel, folder: common.RunFolder
) -> None:
    """Evaluate on the test tasks; what is done already is kept, query by query."""
    path = result_path(folder.path, config.env, "unseen")
    if not path.is_file():
        folder.log.cut(lambda line: line["event"] != "task")
        weights = hashlib.sha256()
        for name, tensor in trained_state(lm).items():
            weights.update(name.encode())
            weights.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
        settings = {
            "model": dict(lm.identity),
            "weights": weights.hexdigest(),
            "format": dataclasses.asdict(method.prompt_format),
            "method": command(config, method),
            "k": method.k,
            "labels": config.labels,
            "queries": config.queries,
            "batch_tokens": config.batch_tokens,
            "device": next(lm.model.parameters()).device.type,
            "versions": _versions(),
        }
        journal = ScoreJournal(folder.path / "scores.jsonl", settings)

        def finished(task: TaskResult) -> None:
            values = task.predictions.values()
            folder.log.write(
                "task",
                task=task.task,
                metric=task.metric,
                mean=float(values.mean()),
                worst=float(values.min()),
                queries=len(task.query),
            )

        result = icl_bench.evaluate_text(
            text_learner(config, method, lm, journal),
            config.env,
            tasks=config.tasks or None,
            domain=config.domain,
            num_queries=config.queries,
            demo_seeds=config.demo_seeds,
            labels=config.labels,
            data_dir=config.data_dir,
            progress=True,
            finished=finished,
        )
        result.save(path)
    print(board_from_runs([load_run(folder.path)]))
    print(f"\n{folder.path}")


def text_learner(
    config: TextConfig, method: TextMethod, lm: LanguageModel, journal: ScoreJournal | None = None
) -> TextLearner:
    """The model as it is evaluated.

    Args:
        config: Settings.
        method: What it says of prompts, calibration and adaptation.
        lm: The model, in eval mode.
        journal: Keeps scores, so that an interrupted evaluation goes on.
    """
    scorer = PromptScorer(
        lm,
        method.prompt_format,
        k=method.k,
        calibrate=method.calibrate,
        journal=journal,
        batch_tokens=config.batch_tokens,
        progress=True,
    )
    return scorer if method.adapt is None else method.adapt(lm, scorer)


class Prepared:
    """A text learner that prepares the model for a task and a draw before it scores the queries."""

    def __init__(
        self,
        scorer: PromptScorer,
        prepared: Callable[[str, int], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._scorer, self._prepared = scorer, prepared

    def __call__(self, episodes: Sequence[TextEpisode]) -> list[Float[np.ndarray, " _"]]:
        """As the scorer."""
        with self._prepared(episodes[0].task, episodes[0].demo_seed or 0):
            return self._scorer(episodes)
