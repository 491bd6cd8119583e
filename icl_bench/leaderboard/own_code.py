"""The user's own learner, named on the command line as module:name."""

import importlib
import sys
from collections.abc import Callable, Collection
from typing import Any


def import_module(name: str) -> Any:
    """The user's own module, from the folder they are in, too, as `python -m` does.

    Raises:
        ValueError: If there is none.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"cannot import {name}: {error}") from error


def own_learner(name: str, known: Collection[str], device: str | None = None) -> Callable[..., Any]:
    """A callable of the user's own, which is imported.

    What their code raises comes with its traceback, not as an error of the command line.

    Args:
        name: ``module:name``.
        known: Learners that the library has, for the error.
        device: Where a PyTorch module is put; None = it stays.

    Raises:
        ValueError: If it is no such name, cannot be imported or called.
    """
    module, _, attribute = name.partition(":")
    if not attribute or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(
            f"{name!r} is no learner: give {', '.join(known)} or module:name of your own"
        )
    try:
        learner = getattr(import_module(module), attribute)
    except AttributeError as error:
        raise ValueError(f"cannot import {name}: {error}") from error
    if isinstance(learner, type):
        raise ValueError(
            f"{name} is no learner but a class: write learner = {attribute}(…) in {module} and "
            f"give {module}:learner"
        )
    if not callable(learner):
        raise ValueError(f"{name} is no learner: it is a {type(learner).__name__}, not a callable")
    if device is not None and hasattr(learner, "to") and hasattr(learner, "eval"):
        learner = learner.to(device).eval()

    def call(*given: Any) -> Any:
        try:
            return learner(*given)
        except Exception as error:
            raise RuntimeError(f"the learner {name} failed") from error

    return call
