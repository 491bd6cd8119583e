"""The library's references on a suite, into a run folder that can be handed in."""

from pathlib import Path

from baselines import common
from icl_bench.evaluation.learner import REFERENCES
from icl_bench.leaderboard.evaluate import BIASES, TITLES
from icl_bench.leaderboard.learner_files import SETTINGS, write_settings
from icl_bench.registration import find_spec


def run(reference: str, config: common.RunConfig, path: Path) -> None:
    """Evaluate a reference on the environments of a run, as far as their data are at hand.

    Args:
        reference: ``chance``, ``1-nn`` or ``logistic-regression``.
        config: The environments; ``resume`` is the run folder.
        path: The run folder.

    Raises:
        MissingDataError: If the data of none are at hand.
    """
    envs = common.envs_at_hand(config)
    classes = find_spec(config.meta_train).num_classes
    entry = common.entry(
        config,
        name=reference,
        title=TITLES[reference],
        inductive_bias=BIASES[reference],
        code=f"icl-bench evaluate {reference}",
        deterministic=True,
        state_size=0 if reference == "chance" else None,
        kind="reference",
    )
    with common.open_run(config, entry, f"icl-bench evaluate {reference}") as folder:
        write_settings(path / SETTINGS, reference, {"num_classes": classes})
        common.evaluate_run(folder, REFERENCES[reference](classes), envs)
