"""Fixtures of all tests: a private cache folder, no network, real data where they are at hand."""

import os
import signal
from pathlib import Path

import pytest

# Set before any library is imported: without it a missing network costs 23 s of retries a call.
os.environ["HF_HUB_OFFLINE"] = "1"

# Shells start jobs in the background deaf to SIGINT, and children inherit that: tests of
# interruptions need an open ear wherever they run.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


def data_folder() -> Path | None:
    """The folder of real images: ICL_BENCH_DATA, or ``shared/data`` beside the repository."""
    candidates = [os.environ.get("ICL_BENCH_DATA"), ROOT.parent / "shared" / "data"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "images" / "MNIST" / "test.npz").is_file():
            return Path(candidate)
    return None


def text_folder() -> Path | None:
    """The folder of real text tasks: ICL_BENCH_DATA, or ``shared/data`` beside the repository."""
    for candidate in (os.environ.get("ICL_BENCH_DATA"), ROOT.parent / "shared" / "data"):
        if candidate and (Path(candidate) / "text" / "tasks").is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real MNIST-family images; skips where there is none."""
    folder = data_folder()
    if folder is None:
        pytest.skip("no real images: set ICL_BENCH_DATA to a data folder")
    return folder


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Models that a test builds begin with the same weights in every run."""
    import torch

    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keep the user's cache out of the tests; views that tests build are shared by the session."""
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("ICL_BENCH_CACHE", str(folder))
    yield folder
    patch.undo()
