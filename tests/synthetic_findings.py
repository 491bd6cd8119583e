"""For every experiment: rows of a run that show what its figure claims, and rows that show not."""

import math

import pandas as pd
from experiment_tables import (
    CHANCE,
    Rows,
    by_task,
    final,
    joined,
    monitored,
    norms,
    train,
)

from baselines.experiments.figures import gradients, table2
from baselines.experiments.figures.bias import READINGS
from baselines.experiments.spec import Run

GUESS, KNOWN, LEARNED = (CHANCE, CHANCE), (0.9, 0.9), (CHANCE, 0.7)


def places(run: Run, seen: tuple[float, float], unseen: tuple[float, float]) -> dict:
    """Ends of the curve wherever the run is measured; other data sets as unseen tasks."""
    return {on: seen if on == "seen" else unseen for on in run.measure.on}


def capacity_shown(run: Run) -> pd.DataFrame:
    tasks, width = run.config.num_tasks, run.config.width
    if run.baseline == "mlp":
        return final(run, places(run, KNOWN if tasks <= width else GUESS, GUESS))
    seen = LEARNED if tasks >= 256 else KNOWN
    return final(run, places(run, seen, LEARNED if tasks >= 256 else GUESS))


def capacity_not(run: Run) -> pd.DataFrame:
    tasks, width = run.config.num_tasks, run.config.width
    if run.baseline == "mlp":
        known = tasks <= 4096 / width
        return final(run, places(run, KNOWN if known else GUESS, LEARNED))
    return final(run, places(run, KNOWN, LEARNED if tasks < 256 else GUESS))


def curves_shown(run: Run) -> pd.DataFrame:
    return final(run, places(run, GUESS, LEARNED))


def curves_not(run: Run) -> pd.DataFrame:
    return final(run, {on: KNOWN if on == "unseen" else GUESS for on in run.measure.on})


def phases_shown(run: Run) -> pd.DataFrame:
    tasks = run.config.num_tasks
    if tasks <= 16:
        return final(run, places(run, KNOWN, GUESS))
    return final(run, places(run, LEARNED, GUESS if tasks <= 128 else LEARNED))


def phases_not(run: Run) -> pd.DataFrame:
    tasks = run.config.num_tasks
    if tasks >= 1024:
        return final(run, places(run, KNOWN, GUESS))
    return final(run, places(run, LEARNED, LEARNED))


def bimodality_shown(run: Run) -> pd.DataFrame:
    learned = (
        run.config.seed % 2 == 0 if run.config.num_tasks == 362 else run.config.num_tasks > 362
    )
    rows = final(run, places(run, LEARNED, LEARNED if learned else GUESS))
    return joined(rows, train(run, 500, 0.7 if learned else 1.2))


def bimodality_not(run: Run) -> pd.DataFrame:
    learned = run.config.num_tasks > 362
    rows = final(run, places(run, LEARNED, LEARNED if learned else GUESS))
    return joined(rows, train(run, 500, 0.7 if learned else 1.2))


def state_size_shown(run: Run) -> pd.DataFrame:
    return final(run, {"unseen": (CHANCE, 0.2 + 0.05 * math.log2(run.labels["state_size"]))})


def state_size_not(run: Run) -> pd.DataFrame:
    return final(run, {"unseen": (CHANCE, 0.9 - 0.05 * math.log2(run.labels["state_size"]))})


def plateau_of(length: float, sharp: float = 0.05, low: float = 0.6) -> Rows:
    def rows(run: Run) -> pd.DataFrame:
        parts = [train(run, length, low, sharp=sharp), final(run, places(run, LEARNED, LEARNED))]
        return joined(*parts, monitored(run, "unseen", CHANCE, 0.7))

    return rows


def batch_rows(run: Run, exponent: float, memorised: int) -> pd.DataFrame:
    length = 1000 * (run.config.batch_size / 32) ** exponent
    if run.config.num_tasks <= memorised:
        return joined(train(run, 100, 0.3), final(run, places(run, KNOWN, GUESS)))
    return joined(train(run, length), final(run, places(run, LEARNED, LEARNED)))


def batch_shown(run: Run) -> pd.DataFrame:
    return batch_rows(run, -0.5, 64)


def batch_not(run: Run) -> pd.DataFrame:
    found = batch_rows(run, 0.5, 0)
    if run.config.num_tasks > 512:  # the plateau is there, yet nothing is learned
        found.loc[(found.source == "final") & (found.on == "unseen"), "value"] = CHANCE
    return found


def bias_rows(run: Run, factor: float) -> pd.DataFrame:
    share = max(getattr(run.config, name) for name in READINGS)
    learned = (CHANCE, 0.5 + 0.2 * share * (1 if factor < 1 else -1))
    return joined(train(run, 800 * factor**share), final(run, places(run, learned, learned)))


def bias_shown(run: Run) -> pd.DataFrame:
    return bias_rows(run, 0.05)


def bias_not(run: Run) -> pd.DataFrame:
    return bias_rows(run, 4.0)


def embeddings_rows(run: Run, features: float, pixels: float) -> pd.DataFrame:
    last = pixels if run.labels["inputs"] == "pixels" else features
    (on,) = run.measure.on
    return joined(final(run, {on: (0.1, last)}), by_task(run, on, last + noise_of(run)))


def noise_of(run: Run) -> float:
    """Between seeds."""
    return 0.01 * (run.config.seed - 1)


def embeddings_shown(run: Run) -> pd.DataFrame:
    return embeddings_rows(run, 0.45, 0.2)


def embeddings_not(run: Run) -> pd.DataFrame:
    return embeddings_rows(run, 0.1, 0.3)


def sequence_shown(run: Run) -> pd.DataFrame:
    last = 0.2 + 0.1 * math.log2(run.config.episode_length / 5)
    return final(run, places(run, GUESS, (CHANCE, last)))


def sequence_not(run: Run) -> pd.DataFrame:
    last = 0.8 - 0.1 * math.log2(run.config.episode_length / 10)
    return final(run, places(run, GUESS, (CHANCE, last)))


def gradient_rows(run: Run, plain: float, last: float) -> pd.DataFrame:
    level = plain if run.config.bias == 0 else 1.0
    values = {}
    for quantity in gradients.QUANTITIES:
        layers = {"embed": 0.2, "blocks.0": 0.3, "blocks.1": 0.3, gradients.LAST: last}
        values |= {f"{quantity}/{layer}": level * value for layer, value in layers.items()}
    length = 2000 if run.config.bias == 0 else 200
    ends = final(run, places(run, LEARNED, LEARNED))
    return joined(train(run, length), norms(run, values), ends)


def gradients_shown(run: Run) -> pd.DataFrame:
    return gradient_rows(run, 0.5, 1.0)


def gradients_not(run: Run) -> pd.DataFrame:
    return gradient_rows(run, 2.0, 0.1)


def optimizers_rows(run: Run, sign: float, power: float) -> pd.DataFrame:
    base = 1000 * (run.config.eps / 1e-8) ** power if run.config.optimizer == "adam" else sign
    return joined(train(run, base), final(run, places(run, LEARNED, LEARNED)))


def optimizers_shown(run: Run) -> pd.DataFrame:
    return optimizers_rows(run, 300, 0.1)


def optimizers_not(run: Run) -> pd.DataFrame:
    return optimizers_rows(run, 2500, -0.05)


def decay_rows(run: Run, late: float) -> pd.DataFrame:
    parts = [train(run, 200), final(run, places(run, KNOWN, (CHANCE, late)))]
    memorises = run.config.num_tasks <= 64
    early = CHANCE if memorises else 0.7
    unseen = monitored(run, "unseen", early, late if memorises else 0.7)
    return joined(*parts, monitored(run, "seen", 0.85, 0.9), unseen)


def decay_shown(run: Run) -> pd.DataFrame:
    return decay_rows(run, CHANCE)


def decay_not(run: Run) -> pd.DataFrame:
    return decay_rows(run, 0.6)


def depth_rows(run: Run, layers: int) -> pd.DataFrame:
    losses = train(run, 100 * layers**1.2, 0.4 + 0.2 * layers, chance=math.log(10))
    return joined(losses, final(run, {"unseen": (0.1, 0.7)}))


def depth_shown(run: Run) -> pd.DataFrame:
    return depth_rows(run, run.config.layers)


def depth_not(run: Run) -> pd.DataFrame:
    return depth_rows(run, 4 - run.config.layers)


def table2_rows(run: Run, last: dict[str, float]) -> pd.DataFrame:
    env, *others = run.config.envs
    ends = {env: (0.1, last.get(run.baseline, 0.5))} | {on: (0.1, 0.5) for on in others}
    return final(run, ends)


def table2_shown(run: Run) -> pd.DataFrame:
    # Kirsch et al. 2022, Table 2
    return table2_rows(
        run, {"sgd": 0.70, "maml": 0.54, "vsml": 0.79, "lstm": 0.25, "gpicl": 0.74, "chance": 0.1}
    )


def table2_not(run: Run) -> pd.DataFrame:
    return table2_rows(run, dict.fromkeys(table2.METHODS, 0.05) | {"lstm": 0.09, "maml": 0.08})


# Name → rows that show the finding, and rows that show the opposite.
FINDINGS: dict[str, tuple[Rows, Rows]] = {
    "capacity": (capacity_shown, capacity_not),
    "curves": (curves_shown, curves_not),
    "phases": (phases_shown, phases_not),
    "bimodality": (bimodality_shown, bimodality_not),
    "state-size": (state_size_shown, state_size_not),
    "plateau": (plateau_of(1000), plateau_of(5, sharp=200.0)),
    "batch-size": (batch_shown, batch_not),
    "bias": (bias_shown, bias_not),
    "embeddings": (embeddings_shown, embeddings_not),
    "sequence-length": (sequence_shown, sequence_not),
    "gradients": (gradients_shown, gradients_not),
    "optimizers": (optimizers_shown, optimizers_not),
    "weight-decay": (decay_shown, decay_not),
    "vsml-depth": (depth_shown, depth_not),
    "table2": (table2_shown, table2_not),
}
