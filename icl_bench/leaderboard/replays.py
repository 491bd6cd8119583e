"""Records of replays: somebody else ran an entry's learners again and got these predictions.

leaderboards/replays/<suite>/<entry>.json

They lie beside the entries, not in them: an entry is what its authors say, a record is what the
maintainers found. A record counts for the very files that it was made of (``replay_digest``), so
whoever changes a prediction or a checkpoint loses the mark.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icl_bench.data.cache import atomic_path, sha256_file
from icl_bench.evaluation.statistics import Interval

FOLDER = "replays"

# Share of predictions that may differ: other machines round otherwise, and near-ties turn.
ROUNDING = 0.005

MAX_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True)
class ReplayCell:
    """One meta-training seed on one environment, run again.

    Attributes:
        differing: Share of the frozen predictions that differ from those handed in, in [0, 1].
        frozen: Accuracy at the last step on the frozen episodes (text: the mean of the tasks'
            metrics over the frozen demonstration seeds), in [0, 1].
        fresh: The same on as many episodes of fresh tasks (text: other demonstration seeds).
        gap: frozen - fresh with its 95 % interval over tasks, which differ between the two.
        first_step_p: How likely a learner that guesses before the first label would be as good
            at step 0 of the fresh episodes; None for text.
        tuned: Whether the gap lies above zero so clearly that the learner was tuned to what is
            frozen: at 99.9 % for all cells of the entry together (Bonferroni).
    """

    differing: float
    frozen: float
    fresh: float
    gap: Interval
    first_step_p: float | None
    tuned: bool = False

    @property
    def same(self) -> bool:
        """Whether the predictions are those handed in, but for rounding."""
        return self.differing <= ROUNDING


@dataclasses.dataclass(frozen=True)
class ReplayRecord:
    """What a replay of an entry found.

    Attributes:
        digest: Of the files that were replayed, see ``replay_digest``.
        package_version: Version that replayed them.
        cells: Meta-training seed → environment id → cell; what had no data here is left out.
        taxonomy: Environment of meta-training → what the learner does with its tasks, from seen
            and unseen ones (``metrics.taxonomy``); empty for text and without meta-training.
    """

    digest: str
    package_version: str
    cells: Mapping[int, Mapping[str, ReplayCell]]
    taxonomy: Mapping[str, str]

    @property
    def same(self) -> bool:
        """Whether all predictions are those handed in, but for rounding."""
        return all(cell.same for by_env in self.cells.values() for cell in by_env.values())

    @property
    def tuned(self) -> bool:
        """Whether any cell has a gap that shows a learner tuned to what is frozen."""
        return any(cell.tuned for by_env in self.cells.values() for cell in by_env.values())


def replay_digest(entry: str | os.PathLike[str]) -> str:
    """SHA-256 of what is replayed: names and contents of predictions and checkpoints."""
    return _digest(Path(entry), ("predictions", "checkpoints"))


def entry_digest(entry: str | os.PathLike[str]) -> str:
    """SHA-256 of names and contents of all files of an entry."""
    return _digest(Path(entry), (".", "predictions", "checkpoints"))


def _digest(entry: Path, folders: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for folder in folders:
        for file in sorted((entry / folder).glob("*")):
            if file.is_file() and not file.is_symlink():
                name = file.relative_to(entry).as_posix()
                total.update(f"{name}\0{sha256_file(file)}\n".encode())
    return total.hexdigest()


def record_path(root: str | os.PathLike[str], suite: str, entry: str) -> Path:
    """Where the record of ``<root>/<suite>/<entry>`` lies."""
    return Path(root) / FOLDER / suite / f"{entry}.json"


def write_record(path: str | os.PathLike[str], record: ReplayRecord) -> None:
    """Write a record; equal records give equal bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = dataclasses.asdict(record)
    with atomic_path(path) as temporary:
        text = json.dumps(_rounded(document), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        # Six significant digits; a bound that a single task does not have is null.
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def read_record(path: str | os.PathLike[str]) -> ReplayRecord:
    """Read a record.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no record.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is no record of a replay: more than {MAX_BYTES} bytes")
    try:
        return _record(json.loads(path.read_bytes()))
    except KeyError as error:
        raise ValueError(f"{path} is no record of a replay: no {error.args[0]}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no record of a replay: {error}") from error


def _record(document: Any) -> ReplayRecord:
    cells = {
        int(seed): {env: _cell(fields) for env, fields in by_env.items()}
        for seed, by_env in document.pop("cells").items()
    }
    record = ReplayRecord(cells=cells, **document)
    for text in (record.digest, record.package_version, *record.taxonomy.values()):
        if not isinstance(text, str):
            raise ValueError(f"{text!r:.40} is no text")
    return record


def _cell(fields: Mapping[str, Any]) -> ReplayCell:
    for name in ("differing", "frozen", "fresh", "first_step_p"):
        if not (name == "first_step_p" and fields[name] is None):
            _check_number(name, fields[name], 0.0)
    if type(fields["tuned"]) is not bool:
        raise ValueError(f"tuned must be true or false, not {fields['tuned']!r:.40}")
    gap = fields["gap"]
    _check_number("the gap", gap["mean"], -1.0)
    for name in ("low", "high"):
        if gap[name] is not None:
            _check_number(f"the gap's {name}", gap[name], -math.inf, math.inf)
    nan = float("nan")
    known = {key: nan if value is None else value for key, value in gap.items()}
    return ReplayCell(**{**fields, "gap": Interval(**known)})


def _check_number(name: str, value: Any, low: float, high: float = 1.0) -> None:
    if type(value) not in (int, float) or not low <= value <= high:  # also refuses NaN
        raise ValueError(f"{name} cannot be {value!r:.40}")


def record_of(entry: str | os.PathLike[str]) -> ReplayRecord | None:
    """The record of an entry in its leaderboards; None if there is none, or of other files."""
    entry = Path(entry).resolve()
    path = record_path(entry.parent.parent, entry.parent.name, entry.name)
    if not path.is_file():
        return None
    record = read_record(path)
    return record if record.digest == replay_digest(entry) else None
