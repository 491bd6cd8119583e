"""What features of a pretrained network bring to learners that are not meta-trained.

    ICL_BENCH_NETWORK=efficientnet-lite0 python benchmarks/features.py [--dataset CIFAR10]
    ICL_BENCH_NETWORK=efficientnet-lite0 python benchmarks/features.py --npz data/images/CIFAR10mini

The same frozen episodes of unseen tasks by features (view Emb) and by pixels (view Proj); accuracy
at the last step of the episode with 95 % intervals over tasks, and the paired difference.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tabulate import tabulate

import icl_bench
from baselines.sgd import SGD, Config
from icl_bench.catalog import VIEWS
from icl_bench.data.features import chosen_network
from icl_bench.evaluation.statistics import Interval, paired_difference, task_interval
from icl_bench.registration import EnvSpec, find_spec

LEARNERS: dict[str, Callable[[EnvSpec], icl_bench.Learner]] = {
    "1-NN": lambda spec: icl_bench.NearestNeighbour(),
    "online logistic regression": lambda spec: icl_bench.OnlineLogisticRegression(spec.num_classes),
    "SGD": lambda spec: SGD(Config(), spec.num_features, spec.num_classes),
}


def compare(name: str, dataset: str) -> dict[str, Interval]:
    """Accuracy at the last step by features and by pixels, and the difference."""
    hits, labels = {}, {}
    for view in ("Emb", "Proj"):
        spec = find_spec(f"{dataset}-{view}-v0")
        result = icl_bench.evaluate(LEARNERS[name](spec), spec.id)
        hits[view] = result.correct[:, -1].astype(np.float64)
        labels[view] = result.label
        task = result.task
    assert np.array_equal(labels["Emb"], labels["Proj"]), "the episodes are not the same"
    return {
        **{view: task_interval(values, task) for view, values in hits.items()},
        "difference": paired_difference(hits["Emb"], hits["Proj"], task),
    }


def percent(interval: Interval) -> str:
    """For the table."""
    return f"{100 * interval.mean:.1f} ({100 * interval.low:.1f}, {100 * interval.high:.1f})"


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="CIFAR10", help="of the catalog")
    parser.add_argument("--npz", type=Path, help="a data set of your own: train.npz and test.npz")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    args = parser.parse_args()
    dataset = args.npz.name if args.npz else args.dataset
    if args.npz:
        icl_bench.register_dataset(dataset, npz=args.npz)
    network = chosen_network(VIEWS["Emb"])
    print(f"{dataset}, features of {network}, accuracy at the last step in %")
    found = {name: compare(name, dataset) for name in LEARNERS}
    rows = [[name, *map(percent, row.values())] for name, row in found.items()]
    print(tabulate(rows, headers=["learner", "Emb", "Proj", "difference"], tablefmt="github"))
    if args.out:
        numbers = {
            name: {column: dataclasses.asdict(value) for column, value in row.items()}
            for name, row in found.items()
        }
        told = {"dataset": dataset, "network": network, "learners": numbers}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
