"""Command line of every baseline: flags on top of a preset, or of the run to resume; and back."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import tyro

from baselines import common
from baselines.common import Config


def parse(
    presets: Mapping[str, Callable[[], Config]],
    program: str,
    description: str,
    arguments: Sequence[str],
) -> Config:
    """Settings from the command line, on top of a preset or of the run to resume.

    Raises:
        FileNotFoundError: If there is no such run to resume.
        ValueError: If a setting differs from those of the run to resume, or is out of range.
        SystemExit: If tyro printed the help (status 0) or what is wrong with a flag (2).
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=next(iter(presets)))
    first.add_argument("--resume")
    known, _ = first.parse_known_args(arguments)
    if known.resume is None:
        # An unknown preset is left to tyro, which names the flag and the choices.
        default = presets.get(known.preset, next(iter(presets.values())))()
    else:
        kind = type(next(iter(presets.values()))())
        default = _stored_config(kind, Path(known.resume))
    config = tyro.cli(
        type(default), prog=program, description=description, args=arguments, default=default
    )
    if config.resume is not None:
        for field in dataclasses.fields(config):
            given, kept = getattr(config, field.name), getattr(default, field.name)
            if field.name not in common.PLACES and given != kept:
                raise ValueError(
                    f"{config.resume} was begun with {field.name} = {kept}, not {given}: leave "
                    f"--{field.name.replace('_', '-')} away, or start a new run"
                )
    config.check()
    return config


def _stored_config(kind: type[Config], path: Path) -> Config:
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"--resume {path}: not a run folder, it has no config.json")
    try:
        return common.config_from_json(kind, (path / "config.json").read_text())
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"--resume {path}: not settings of this program: {error}") from error


def main(
    run: Callable[[Config], None],
    presets: Mapping[str, Callable[[], Config]],
    program: str,
    description: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Command line of a baseline: flags on top of ``--preset NAME`` or of ``--resume RUN``.

    Errors that the user can mend are one line on stderr and status 2; after an interrupt the
    status is 130.
    """
    try:
        run(parse(presets, program, description, list(sys.argv[1:] if argv is None else argv)))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program that SIGPIPE ended
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def command(
    program: str, preset: Config, config: Config, env: str, no_matter: Collection[str]
) -> str:
    """How to make a run like this: its preset, and every setting that differs from it.

    Args:
        program: How it is run.
        preset: Settings of the preset.
        config: Settings of the run.
        env: Environment of meta-training.
        no_matter: Settings that may differ between the runs of one method: seed, what is shown.
    """
    words = [program, f"--preset {config.preset}", f"--env {env}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in {*no_matter, *common.PLACES} or value == getattr(preset, field.name):
            continue
        name = field.name.replace("_", "-")
        if field.type is bool:
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{name} {shown}")
    return " ".join(words)
