"""The repository as a whole: layers, forbidden calls, documentation that runs, what is shipped."""

import ast
import doctest
import graphlib
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, data_folder

import icl_bench
from icl_bench import __main__ as cli
from icl_bench.catalog import DATASETS, SUITES

# Imports go from a layer to itself or to those before it.
LAYERS = (
    "episodes",
    "catalog",
    "tasks",
    "data",
    "registration",
    "envs",
    "evaluation",
    "leaderboard",
    "__init__",
    "__main__",
)
MAX_LINES = 420
MAX_BYTES, MAX_PREDICTIONS_BYTES = 600_000, 3_000_000
DOCUMENTS = ("README.md", "BENCHMARK.md")
# Too slow to import for a first `import icl_bench`: imported where they are used.
HEAVY = ("torchvision", "datasets", "sklearn", "numba", "pandas", "matplotlib", "pyarrow", "scipy")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


LIBRARY = python_files("icl_bench")
BASELINES = python_files("baselines")
PROGRAMS = LIBRARY + BASELINES + python_files("benchmarks", "tools")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {module_of(path) for path in LIBRARY + BASELINES}


def imports(source: str) -> Iterator[tuple[str, int]]:
    """Modules of this repository that a module imports anywhere, and the lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative name", node.lineno  # never used here
            continue
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            if name.split(".")[0] in ("icl_bench", "baselines"):
                # The module itself, or the one that the name is taken from.
                known = name if name in MODULES else name.rpartition(".")[0] or name
                known = f"{known}.__init__" if known in ("icl_bench", "baselines") else known
                yield known, node.lineno


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


def wrong_imports(source: str, module: str) -> list[str]:
    """Imports against the direction tests → baselines → icl_bench → … → episodes."""
    found = []
    for other, line in imports(source):
        if other not in MODULES:
            found.append(f"{module}:{line} imports {other}, which there is not")
        elif module.startswith("icl_bench.") and (
            other.startswith("baselines.") or layer(other) > layer(module)
        ):
            found.append(f"{module}:{line} imports {other}")
    return found


@pytest.mark.parametrize("path", LIBRARY + BASELINES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_imports(path.read_text(), module_of(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("icl_bench.tasks.sampler", "from icl_bench.envs.source import EnvArgs"),
        ("icl_bench.catalog", "import icl_bench.data.images"),
        ("icl_bench.envs.source", "def f():\n    from icl_bench.evaluation import protocol"),
        ("icl_bench.evaluation.verify", "import icl_bench"),
        ("icl_bench.evaluation.verify", "from icl_bench import make"),
        ("icl_bench.leaderboard.cli", "from baselines import common"),
        ("icl_bench.tasks.sampler", "from . import counter"),
        ("baselines.sgd", "from icl_bench.nowhere import something"),
    ],
)
def test_wrong_imports_are_found(module: str, source: str) -> None:
    assert len(wrong_imports(source, module)) == 1


def test_no_module_needs_itself() -> None:
    graph = {
        module_of(path): {other for other, _ in imports(path.read_text())}
        for path in LIBRARY + BASELINES
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == MODULES


def is_program(path: Path) -> bool:
    return "\nif __name__ == " in path.read_text()


def test_a_baseline_never_imports_another() -> None:
    """Baselines are programs; they share modules that are none. ``replay`` rebuilds any of them."""
    programs = {module_of(path) for path in BASELINES if is_program(path)}
    assert "baselines.sgd" in programs
    for path in BASELINES:
        used = {other for other, _ in imports(path.read_text())}
        if path.stem != "replay" and "experiments" not in path.parts:
            assert not used & programs, f"{name_of(path)} imports {used & programs}"


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_a_file_fits_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


# Calls

GLOBAL_RANDOM = re.compile(
    r"(torch\.(cuda\.)?manual_seed(_all)?|torch\.(seed|set_rng_state)|random\.\w+"
    r"|(np|numpy)\.random\.(?!default_rng$|Generator$|SeedSequence$|Philox$|RandomState$)\w+)"
)


def forbidden(source: str, *, random: bool) -> list[str]:
    """Calls that no file may hold; ``random``: nor those of global random generators."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            bad = {"pickle", "cPickle", "dill", "cloudpickle"} & {n.split(".")[0] for n in names}
            found += [f"line {node.lineno}: {name}" for name in bad]
            if random and "random" in [n for n in names if n != "numpy.random"]:
                found.append(f"line {node.lineno}: the module random")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name.endswith(".cuda"):
            found.append(f"line {node.lineno}: .cuda() instead of the device asked for")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            found.append(f"line {node.lineno}: np.load without allow_pickle=False")
        if name.endswith("read_pickle") or given.get("allow_pickle") == "True":
            found.append(f"line {node.lineno}: pickles")
        if random and GLOBAL_RANDOM.fullmatch(name):
            found.append(f"line {node.lineno}: {name}, global random state")
    return found


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_forbidden_calls(path: Path) -> None:
    random = path in LIBRARY or path in BASELINES
    assert forbidden(path.read_text(), random=random) == []


@pytest.mark.parametrize(
    "source",
    [
        "model.cuda()",
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed_all(0)",
        "np.random.seed(0)",
        "x = np.random.randn(3)",
        "import random",
        "from random import shuffle",
    ],
)
def test_forbidden_calls_are_found(source: str) -> None:
    assert forbidden(source, random=True)


@pytest.mark.parametrize(
    "source",
    [
        "np.random.default_rng(0)",
        "np.random.RandomState(0)",
        "torch.load(path, weights_only=True)",
        "np.load(path, mmap_mode='c', allow_pickle=False)",
        "torch.cuda.is_available()",
    ],
)
def test_allowed_calls_are_not(source: str) -> None:
    assert forbidden(source, random=True) == []


# Documentation


def test_public_names_have_docstrings() -> None:
    assert len(set(icl_bench.__all__)) == len(icl_bench.__all__) > 20
    documented = 0
    for name in icl_bench.__all__:
        value = getattr(icl_bench, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = value.__doc__ or ""
            assert len(text) > 20, name
            assert not text.startswith(f"{name}("), f"{name}: the docstring is the dataclass's own"
            documented += 1
    assert documented > 15


@pytest.mark.parametrize("path", [p for p in LIBRARY if ">>>" in p.read_text()], ids=name_of)
def test_doctests(path: Path) -> None:
    module = importlib.import_module(module_of(path).removesuffix(".__init__"))
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried > 0


def test_first_import_is_light() -> None:
    code = (
        "import icl_bench, sys\n"
        "env = icl_bench.registry['MNIST-Proj-v0']\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def blocks(text: str, *languages: str) -> list[tuple[int, str]]:
    """Fenced blocks of these languages, or of any: number of the first line, and the code."""
    found, start, language = [], None, ""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if start is None and line.startswith("```"):
            start, language = number + 1, line[3:].strip()
        elif start is not None and line == "```":
            if not languages or language in languages:
                found.append((start, "\n".join(lines[start - 1 : number - 1]) + "\n"))
            start = None
    return found


def needs_download(code: str) -> bool:
    """Whether a snippet names images that must be downloaded first."""
    bases = [row.name for row in DATASETS if row.source == "torchvision"]
    suites = [s.name for s in SUITES if any(env.startswith(tuple(bases)) for env in s.envs)]
    return re.search(rf"\b({'|'.join(bases + suites)})(?![\w])", code) is not None


def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def environment() -> dict[str, str]:
    """As a reader has it: the installed commands, and the repository's baselines."""
    found = dict(os.environ)
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    found["PYTHONPATH"] = str(ROOT)
    folder = data_folder()
    if folder is not None:
        found["ICL_BENCH_DATA"] = str(folder)
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_snippets_run(name: str, tmp_path) -> None:
    """All blocks of a document in order, as one program, with the document's line numbers."""
    lines: list[str] = []
    for start, code in blocks(document(name), "python"):
        if needs_download(code) and data_folder() is None:
            continue
        lines += [""] * (start - 1 - len(lines)) + code.splitlines()
    program = tmp_path / f"{Path(name).stem}_snippets.py"
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr


def commands(text: str, program: str, *languages: str) -> list[str]:
    """Commands of a program in the blocks of a document, without comments."""
    found = []
    for _, code in blocks(text, *languages):
        for line in code.replace("\\\n", " ").splitlines():
            if line.strip().startswith(f"{program} "):
                found.append(re.sub(r"\s+#\s.*$", "", line.strip()))
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_command_snippets_run(name: str, tmp_path) -> None:
    """Commands of ```sh blocks that need no downloaded images run, in one folder, in order."""
    lines = commands(document(name), "icl-bench", "sh")
    script = "\n".join(line for line in lines if not needs_download(line))
    made = subprocess.run(
        [shutil.which("bash") or "sh", "-euc", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, f"{script}\n{made.stdout}\n{made.stderr}"


@pytest.mark.parametrize("name", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_commands_of_the_documents_exist(name: str) -> None:
    """In every block, whether it can be run here or not."""
    text = document(name)
    for line in commands(text, "icl-bench"):
        cli._parser().parse_args(shlex.split(line)[1:])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in commands(text, "make"):
        assert set(shlex.split(line)[1:]) <= set(targets), line
    for line in commands(text, "python -m"):
        module = shlex.split(line)[2]
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), line


def test_the_readme_shows_both_ways_in() -> None:
    text = document("README.md")
    assert any(not needs_download(code) for _, code in blocks(text, "python"))
    assert commands(text, "make")
    assert commands(text, "icl-bench")


def test_snippets_are_found_and_told_apart() -> None:
    text = (
        "a\n```python\nx = 1\n```\n```sh\nicl-bench list  # all\nls\nicl-bench show \\\n"
        "  Digits-Proj8-v0\n```\n```\nicl-bench download MNIST\n```\nicl-bench no command\n"
    )
    assert blocks(text, "python") == [(3, "x = 1\n")]
    shown = [shlex.split(line) for line in commands(text, "icl-bench", "sh")]
    assert shown == [["icl-bench", "list"], ["icl-bench", "show", "Digits-Proj8-v0"]]
    assert commands(text, "icl-bench")[2:] == ["icl-bench download MNIST"]
    for code in ("make('MNIST-Proj-v0')", "--suite table2-v0", "icl-bench download SVHN KMNIST"):
        assert needs_download(code)
    for code in ("make('Digits-Proj8-v0')", "--suite digits-v0", "MNISTlike"):
        assert not needs_download(code)


# What is shipped


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(command, capture_output=True, check=True)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_library_and_its_data_and_nothing_else(wheel) -> None:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {name_of(path) for path in LIBRARY}
    for pattern in (
        "evaluation/frozen/*.npz",
        "leaderboard/reported/*.csv",
        "leaderboard/assets/*",
    ):
        files = {name_of(path) for path in (ROOT / "icl_bench").glob(pattern)}
        assert files
        expected |= files
    expected |= {"icl_bench/evaluation/frozen/golden.json", "icl_bench/data/metaicl.json"}
    expected |= {name_of(path) for path in (ROOT / "icl_bench").glob("py.typed")}
    assert found == expected
    for suite in SUITES:
        if suite.name == "digits-v0":
            for env in suite.envs:
                assert f"icl_bench/evaluation/frozen/{env.split('-')[0]}.npz" in found


def test_the_wheel_declares_its_command_and_licence(wheel) -> None:
    text = {
        Path(name).name: wheel.read(name).decode()
        for name in wheel.namelist()
        if ".dist-info/" in name
    }
    assert "icl-bench = icl_bench.__main__:main" in text["entry_points.txt"]
    assert f"Version: {icl_bench.__version__}\n" in text["METADATA"]
    assert "License-Expression: MIT" in text["METADATA"]
    assert text["LICENSE"].startswith("MIT License")


def committed() -> list[Path]:
    made = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in made.stdout.split("\0") if name]


def test_committed_files_are_small() -> None:
    sizes = {name_of(path): path.stat().st_size for path in committed() if path.is_file()}
    assert "pyproject.toml" in sizes
    limits = {
        name: MAX_PREDICTIONS_BYTES
        if re.fullmatch(
            r"leaderboards/([^/]+/[^/]+/(predictions|checkpoints)/[^/]+|index\.html)", name
        )
        else MAX_BYTES
        for name in sizes
    }
    assert {name: size for name, size in sizes.items() if size > limits[name]} == {}


def test_constraints_pin_every_requirement() -> None:
    """Exact public versions: no local builds, which no index has, and no places."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    names = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = re.split(r"[><=\[; ]", requirement)[0]
        assert re.sub(r"[-_.]+", "-", name).lower() in names, requirement
