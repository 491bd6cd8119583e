"""CMA-ES on the weights of a cloned LSTM: online learning itself is improved, without gradients.

The covariance is diagonal (sep-CMA-ES, Ros & Hansen 2008): the paper's full one of some 4,600
weights takes its eigenvectors every generation. A checkpoint holds the losses of all candidates;
the rest is done again from them, as everything that is drawn has its key.
"""

import importlib
import math
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from baselines import common, process
from baselines.vsml_clone_grid import Cell, Config, VSMLClone
from baselines.vsml_clone_online import ImageSet, learner, live
from baselines.vsml_clone_train import keep, note, restore
from icl_bench.tasks import counter

# A candidate's loss is not above it: some candidates diverge.
WORST = 1e3


def library() -> Any:
    """The package cmaes.

    Raises:
        ValueError: With the command that installs it.
    """
    try:
        return importlib.import_module("cmaes")
    except ImportError as error:
        raise ValueError("--improve needs cmaes: pip install icl-bench[es]") from error


def fitness(net: VSMLClone, images: ImageSet, config: Config, *name: str | int) -> float:
    """Mean loss of a learner's predictions over an online stretch."""
    lived = live(net, images, config.copies, config.improve_steps, "fitness", config.seed, *name)
    loss = float(torch.stack([loss for loss, _ in lived]).mean())
    return min(loss, WORST) if math.isfinite(loss) else WORST


def improve(
    config: Config, cell: Cell, images: ImageSet, folder: common.RunFolder, seconds: float
) -> None:
    """Improve the cell in place, unless its learner is better as it was on fresh examples.

    Args:
        config: improve (generations), improve_std, improve_steps, copies.
        cell: The cloned weights.
        images: To learn from online, without a hidden layer.
        folder: For the log and checkpoints.
        seconds: What cloning has taken, for checkpoints.

    Raises:
        KeyboardInterrupt: After SIGINT or SIGTERM, when the checkpoint is written.
    """
    cloned = {name: value.clone() for name, value in cell.state_dict().items()}
    net = learner(VSMLClone, config, cell, images, deep=False)
    weights = list(net.cell.parameters())
    mean = nn.utils.parameters_to_vector(weights).double().cpu().numpy()
    key = counter.stream_key("vsml clone es", config.seed)
    search = library().SepCMA(mean=mean.copy(), sigma=config.improve_std, seed=key % 2**32)
    state = restore(config)
    known = state["fitness"] if state is not None and state["stage"] == "improve" else []
    folder.log.cut(lambda line: line["event"] != "improve" or line["generation"] <= len(known))
    losses: list[list[float]] = [list(values) for values in known]

    def put(candidate: np.ndarray) -> None:
        vector = torch.from_numpy(candidate).to(weights[0])
        nn.utils.vector_to_parameters(vector, weights)

    bar = tqdm(total=config.improve, initial=len(losses), desc="CMA-ES", disable=None)
    with process.signals() as stop, bar:
        for generation in range(config.improve):
            candidates = [search.ask() for _ in range(search.population_size)]
            fresh = generation == len(losses)
            if fresh:
                losses.append([])
                for candidate in candidates:
                    put(candidate)
                    losses[-1].append(fitness(net, images, config, generation))
                    if stop:
                        raise KeyboardInterrupt  # the generation is begun again
            search.tell(list(zip(candidates, losses[generation], strict=True)))
            if fresh:
                values = losses[generation]
                about = {"best": min(values), "mean": float(np.mean(values))}
                folder.log.write("improve", generation=generation + 1, **about)
                keep(config, folder, stage="improve", seconds=seconds, model=cloned, fitness=losses)
                bar.update()
    found = []
    for candidate in (mean, search.mean):
        put(candidate)
        found.append(fitness(net, images, config, "check"))
    note(folder, "improved", before=found[0], after=found[1])
    print(f"CMA-ES: mean online loss {found[0]:.4f} → {found[1]:.4f} on fresh examples")
    if found[1] < found[0]:
        cell.load_state_dict(net.cell.state_dict())
