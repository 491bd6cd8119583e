"""Write the frozen answers of all text test tasks whose data are at hand into the package.

    python tools/pin_text.py [--data-dir DIR]

For maintainers: pinned numbers of a published version never change.
"""

import argparse
from pathlib import Path

import numpy as np

from icl_bench.catalog import TEXT_ENVIRONMENTS
from icl_bench.data.cache import atomic_path
from icl_bench.data.text import text_setting
from icl_bench.envs.text_source import TextArgs, TextSource
from icl_bench.evaluation import text_protocol


def main() -> None:
    """Write ``text.npz``; say what is not at hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    data_dir = parser.parse_args().data_dir
    rows: dict[str, tuple[str, list[int], list[int]]] = {}
    for setting in dict.fromkeys(row.base for row in TEXT_ENVIRONMENTS):
        source = TextSource(f"{setting}-ICL-v0", TextArgs("unseen"), data_dir=data_dir)
        for task in source.tasks:
            queries = [episode.query for episode in source.queries(task)]
            answers = [query.answer for query in queries]
            rows[task] = (source.checksum(task), answers, [len(query.options) for query in queries])
        missing = [task for task in text_setting(setting).test if task not in rows]
        print(f"{setting}: {source.coverage}; unpinned: {', '.join(missing) or 'none'}")
    names = sorted(rows)
    path = Path(text_protocol.__file__).parent / "frozen" / "text.npz"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            tasks=np.array(names),
            checksums=np.array([rows[name][0] for name in names]),
            counts=np.array([len(rows[name][1]) for name in names]),
            answers=np.concatenate([rows[name][1] for name in names]).astype(np.uint8),
            options=np.concatenate([rows[name][2] for name in names]).astype(np.uint8),
        )
    print(f"wrote {path}: {len(names)} tasks, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
