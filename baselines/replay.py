"""Run the learners of entries again: do they give the predictions that were handed in?

    python -m baselines.replay leaderboards/table2-proj8-v0/gpicl
    python -m baselines.replay leaderboards/digits-v0/*/ --record       # for the boards
    python -m baselines.replay leaderboards/digits-v0/gpicl --runs runs    # for score and plot
    python -m baselines.replay --check                                  # nothing is run

Of each meta-training seed the learner is rebuilt from checkpoints/seed-<n>.safetensors or .json,
which names the baseline (one of an allow-list) and its settings; nothing of the file is executed.
It then predicts the frozen episodes and as many fresh ones, of tasks that nobody has seen; on text
it answers the frozen queries, and the same after other draws of demonstrations, as there are no
further tasks. What it says of an entry:

    replayed      the predictions are those handed in, but for rounding (0.5 % may differ)
    DIFFERS       they are not
    GAP           a learner tuned to what is frozen: it is significantly worse on what is fresh
    PEEKS         it knows classes of fresh tasks before it has seen a label
    not replayed  no learner was handed in, data or a package are not at hand, or it is refused

The gap is the accuracy on frozen less that on fresh episodes, at the last step, with a 95 %
interval: Welch's t on the means of the tasks, which are independent; on text a paired t. GAP
needs a 99.9 % interval above zero after Bonferroni over all seeds and environments of the entry, so
that one honest entry in 2,000 is accused.

--record writes leaderboards/replays/<suite>/<entry>.json, by which boards mark the entry; not if
predictions differ, nor over a record of the same files with more cells. A record counts for the
very files of predictions and learners that it was made of, which --check verifies of all records.
Status 0 if all is well, 1 for DIFFERS, GAP, PEEKS and records that do not count, 2 if nothing of
an entry could be replayed, 130 after an interrupt, which leaves every record as it was or whole.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import icl_bench
from baselines import common
from baselines.rebuild import ReplayError, load_learner, load_text_learner
from baselines.replay_cells import Rerun, rerun_text, rerun_vectors
from icl_bench.catalog import Suite, TextSuite
from icl_bench.data.images import MissingDataError
from icl_bench.envs.source import EnvArgs
from icl_bench.evaluation.metrics import taxonomy
from icl_bench.leaderboard.formatting import clean_text
from icl_bench.leaderboard.plausibility import THRESHOLD
from icl_bench.leaderboard.replays import (
    FOLDER,
    ReplayRecord,
    read_record,
    record_of,
    record_path,
    replay_digest,
    write_record,
)
from icl_bench.leaderboard.submission import Submission, read_submission

# Arguments of meta-training that decide which tasks were seen.
SEEN = frozenset({"num_tasks", "bias", "single_task", "repeat", "task_seed"})


def replay(
    submission: Submission, device: str = "cpu", data_dir: str | None = None
) -> ReplayRecord:
    """Replay every seed of a submission that has a learner, where data are at hand.

    A line of every cell is printed as soon as it is there.

    Raises:
        ReplayError: If there is nothing to replay, or a learner cannot be rebuilt or run.
    """
    digest = replay_digest(submission.path)
    reruns: dict[tuple[int, str], Rerun] = {}
    for seed, path in learner_files(submission).items():
        for env in (submission.text or submission.predictions)[seed]:
            try:
                found = _rerun(submission, seed, env, path, device, data_dir)
            except MissingDataError as error:
                print(f"skipped {env}: {error}", file=sys.stderr)
                continue
            reruns[seed, env] = found
            print(_line(seed, env, found), flush=True)
    if not reruns:
        raise ReplayError("no data of any of its environments are at hand")
    cells: dict[int, dict[str, Any]] = {}
    for (seed, env), found in reruns.items():
        cells.setdefault(seed, {})[env] = found.cell(len(reruns))
    words = {} if submission.text else taxonomies(submission, device, data_dir)
    return ReplayRecord(digest, metadata.version("icl-bench"), cells, words)


def _rerun(
    submission: Submission, seed: int, env: str, path: Path, device: str, data_dir: str | None
) -> Rerun:
    if isinstance(submission.suite, TextSuite):
        learner = load_text_learner(path, env, device, data_dir)
        return rerun_text(learner, env, submission.text[seed][env], submission.suite, data_dir)
    made: Any = icl_bench.make(env, split="unseen", device=device, data_dir=data_dir)
    handed_in = submission.predictions[seed][env]
    return rerun_vectors(load_learner(path, device), made.unwrapped, handed_in)


def learner_files(submission: Submission) -> dict[int, Path]:
    """Meta-training seed → the file of its learner, of every seed that has one.

    Raises:
        ReplayError: If there is none, or two of one seed.
    """
    found: dict[int, Path] = {}
    for seed in submission.seeds:
        names = [f"seed-{seed}.{kind}" for kind in ("safetensors", "json")]
        paths = [submission.path / "checkpoints" / name for name in names]
        paths = [path for path in paths if path.is_file()]
        if len(paths) > 1:
            raise ReplayError(f"there are both {' and '.join(names)}: one learner of a seed")
        if paths:
            found[seed] = paths[0]
    if not found:
        raise ReplayError("there is no checkpoint to replay (checkpoints/seed-<n>)")
    return found


def taxonomies(
    submission: Submission, device: str = "cpu", data_dir: str | None = None
) -> dict[str, str]:
    """What the learners do with tasks, where they were meta-trained on finitely many.

    Returns:
        Environment of meta-training → word of ``metrics.taxonomy``, several where seeds differ;
        empty where there are no seen tasks, or their data or arguments are not at hand.
    """
    about = submission.scorable()
    env, kwargs = about.meta_train or "", dict(about.meta_train_kwargs)
    unseen = submission.results().get(env)
    if unseen is None or kwargs.get("num_tasks", EnvArgs().num_tasks) in (None, "none"):
        return {}
    if kwargs.pop("episode_length", unseen[0].episode_length) != unseen[0].episode_length:
        return {}
    files, words = learner_files(submission), []
    try:
        if others := sorted(set(kwargs) - SEEN):
            raise ValueError(f"arguments {', '.join(others)} of meta-training")
        for seed, result in zip(submission.seeds, unseen, strict=True):
            if seed in files:
                seen = icl_bench.evaluate(
                    load_learner(files[seed], device),
                    env,
                    split="seen",
                    seed=seed,
                    num_episodes=len(result.episode),
                    device=device,
                    data_dir=data_dir,
                    **kwargs,
                )
                words.append(taxonomy(seen, result))
    except (ValueError, TypeError, OSError) as error:
        print(f"no taxonomy: {clean_text(str(error))}", file=sys.stderr)
        return {}
    print(f"with the tasks of {env}: {', '.join(words)}")
    return {env: ", ".join(dict.fromkeys(words))}


def _line(seed: int, env: str, found: Rerun) -> str:
    cell, gap = found.cell(1), found.gap()
    return (
        f"seed {seed}  {env:24} {'same' if cell.same else 'DIFFERS':8}"
        f"{cell.differing:.3%} of predictions differ; frozen {cell.frozen:.1%}, fresh "
        f"{cell.fresh:.1%}, gap {gap.mean:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}]"
    )


def verdict(submission: Submission, record: ReplayRecord) -> tuple[str, bool]:
    """What a replay says of an entry, and whether all is well."""
    wrong: dict[str, list[str]] = {"DIFFERS": [], "GAP": [], "PEEKS": []}
    for seed, by_env in record.cells.items():
        for env, cell in by_env.items():
            peeks = cell.first_step_p is not None and cell.first_step_p < THRESHOLD
            for word, holds in zip(wrong, (not cell.same, cell.tuned, peeks), strict=True):
                wrong[word] += [f"{env}, seed {seed}"] * holds
    for word, where in wrong.items():
        if where:
            more = f" and {len(where) - 1} more" * (len(where) > 1)
            return f"{word} on {where[0]}{more}", False
    whole = submission.text or submission.predictions
    handed_in = sum(map(len, whole.values()))
    replayed = sum(map(len, record.cells.values()))
    part = f": {replayed} of {handed_in} cells (seeds x environments)" * (replayed < handed_in)
    return f"replayed{part}", True


def save_runs(
    submission: Submission, root: Path, device: str = "cpu", data_dir: str | None = None
) -> list[Path]:
    """Evaluate every checkpoint as any learner, and write a run folder of each seed.

    Raises:
        ReplayError: If a learner is missing or cannot be rebuilt, or of a text suite.
    """
    if not isinstance(submission.suite, Suite):
        raise ReplayError("only entries of vectors are evaluated anew")
    about, paths = submission.scorable(), []
    for seed, path in learner_files(submission).items():
        learner, results = load_learner(path, device), []
        for env in submission.predictions[seed]:
            try:
                result = icl_bench.evaluate(
                    learner, env, progress=True, device=device, data_dir=data_dir
                )
            except MissingDataError as error:
                print(f"skipped {env}: {error}", file=sys.stderr)
            else:
                results.append(result)
        entry = dataclasses.replace(about, seed=seed).to_dict()
        paths.append(icl_bench.save_run(results, root, suite=submission.suite.name, **entry))
    return paths


def check_records(root: Path) -> list[str]:
    """Why records below ``root`` do not count, one sentence each; nothing is run."""
    problems = []
    for path in sorted((root / FOLDER).glob("*/*")):
        entry = root / path.parent.name / path.name.removesuffix(".json")
        try:
            record = read_record(path)
        except (ValueError, OSError) as error:
            problems.append(clean_text(str(error)))
            continue
        if not (entry / "entry.toml").is_file():
            problems.append(f"{path}: there is no entry {entry}")
        elif record.digest != replay_digest(entry):
            problems.append(f"{path}: predictions or checkpoints changed since, replay it again")
        elif not record.same:
            problems.append(f"{path}: predictions differed")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module for the status."""
    parser = argparse.ArgumentParser(
        prog="python -m baselines.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("entries", nargs="*", type=Path, metavar="ENTRY", help="folders of entries")
    parser.add_argument("--record", action="store_true", help="write what was found, for boards")
    parser.add_argument("--runs", type=Path, help="evaluate instead, into run folders here")
    parser.add_argument("--check", action="store_true", help="only see whether records count")
    parser.add_argument(
        "--root", type=Path, default=Path("leaderboards"), help="for --check (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument("--data-dir", help="data folder; see also ICL_BENCH_DATA")
    args = parser.parse_args(argv)
    if bool(args.entries) == args.check:
        parser.error("give folders of entries, or --check")
    if args.check:
        problems = check_records(args.root)
        print("\n".join(problems or [f"the records in {args.root / FOLDER} count"]))
        return int(bool(problems))
    try:
        return _replay_all(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _replay_all(args: argparse.Namespace) -> int:
    """Replay every entry, then say a line of each; the worst status."""
    found = []
    for i, path in enumerate(args.entries):
        name = clean_text(str(path))
        if len(args.entries) > 1:
            print(f"--- {i + 1} of {len(args.entries)}: {name}", flush=True)
        try:
            found.append((f"{name}: ", *_one(path, args)))
        except (ValueError, OSError) as error:
            found.append((f"{name}: ", f"not replayed ({clean_text(str(error))})", 2))
    for name, words, status in found:
        if words:
            print(name + words, file=sys.stderr if status == 2 else sys.stdout)
    return max(status for *_, status in found)


def _one(path: Path, args: argparse.Namespace) -> tuple[str, int]:
    """Replay an entry: what to say of it at the end, and the status."""
    device = str(common.resolve_device(args.device))
    submission = read_submission(path)
    submission.scorable()
    if args.runs is not None:
        for run in save_runs(submission, args.runs, device, args.data_dir):
            print(run)
        return "", 0
    place = path.resolve()
    written = record_path(place.parent.parent, place.parent.name, place.name)
    if args.record and submission.suite and place.parent.name != submission.suite.name:
        raise ReplayError(
            f"the record would be {written}: --record needs an entry in a folder "
            f"{submission.suite.name}, as leaderboards/{submission.suite.name}/{place.name}"
        )
    record = replay(submission, device, args.data_dir)
    words, good = verdict(submission, record)
    if args.record:
        words = f"{words}; {_recorded(place, written, record)}"
    return words, int(not good)


def _recorded(entry: Path, path: Path, record: ReplayRecord) -> str:
    """Write a record unless it says less than there is; what was done."""
    if not record.same:
        return "not recorded"
    with contextlib.suppress(ValueError):  # a damaged one is written anew
        if (old := record_of(entry)) and _cells(old) - _cells(record):
            return f"{path} has more cells and stays"
    write_record(path, record)
    return str(path)


def _cells(record: ReplayRecord) -> set[tuple[int, str]]:
    return {(seed, env) for seed, by_env in record.cells.items() for env in by_env}


if __name__ == "__main__":
    sys.exit(main())
