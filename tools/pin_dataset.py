"""Compute what a catalog row and the frozen labels of a data set need, from data at hand.

    python tools/pin_dataset.py MNIST [--data-dir DIR] [--write-labels]

Prints checksums and statistics; ``--write-labels`` writes the labels of the frozen episodes into
the package. For maintainers: pinned numbers of a published version never change.
"""

import argparse
from pathlib import Path

import numpy as np

import icl_bench
from icl_bench.catalog import PIXEL_VIEWS
from icl_bench.data.cache import atomic_path
from icl_bench.data.images import MissingDataError, dataset, load_images
from icl_bench.data.views import chunks, view_stats
from icl_bench.evaluation import protocol
from icl_bench.evaluation.verify import write_golden


def main() -> None:
    """Print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--data-dir")
    parser.add_argument("--write-labels", action="store_true")
    parser.add_argument("--write-golden", action="store_true", help="of all data sets at hand")
    args = parser.parse_args()
    row = dataset(args.name)
    if row.source != "synthetic":
        for split in ("train", "test"):
            try:
                data = load_images(args.name, split, args.data_dir)
            except MissingDataError:
                print(f"{split}: not at hand, unpinned")
                continue
            print(f"{split}: {len(data.labels)} {data.images.shape[1:]} {data.sha256}")
            for view in PIXEL_VIEWS.values():
                mean, std = view_stats(chunks(data.images, view))
                print(f'    "{view.name}": ({mean:.9f}, {std:.9f}),')
    if args.write_labels:
        env = icl_bench.make(f"{args.name}-Proj8-v0", split="unseen", data_dir=args.data_dir)
        plan = env.unwrapped.source.plan(np.arange(protocol.EXTENDED_EPISODES))
        folder = Path(protocol.__file__).parent / "frozen"
        with atomic_path(folder / f"{args.name}.npz") as path:
            np.savez_compressed(path, labels=plan.y.astype(np.uint8))
        print(f"wrote {folder / f'{args.name}.npz'}")
    if args.write_golden:
        path = Path(protocol.__file__).parent / "frozen" / "golden.json"
        write_golden(path, args.data_dir)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
