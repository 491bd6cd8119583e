"""Figures: what is drawn is what the statistics say, in files that are whole and repeatable."""

import io
import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image
from synthetic_results import simulated_result

from icl_bench.evaluation import plots
from icl_bench.evaluation.statistics import curve_interval

ENVS = ("MNIST-Proj-v0", "FashionMNIST-Proj-v0")
ROOT = Path(__file__).resolve().parents[1]


def curve(final: float, length: int = 100) -> np.ndarray:
    return 0.1 + (final - 0.1) * (1 - np.exp(-np.arange(length) / 15))


def example_results(length: int = 100) -> dict:
    return {
        method: {
            env: [simulated_result(curve(final, length), seed=seed, env=env) for seed in range(2)]
            for env in ENVS
        }
        for method, final in (("GPICL Transformer", 0.7), ("LSTM", 0.25))
    }


@pytest.fixture
def drawn(monkeypatch) -> list[matplotlib.figure.Figure]:
    """Every figure that is saved, to look inside."""
    figures: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def spy(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return figures


def test_png_has_the_right_size_and_equal_bytes_twice(tmp_path, drawn):
    results = example_results()
    first = plots.plot_learning_curves(results, tmp_path / "new" / "a.png", title="Two learners")
    second = plots.plot_learning_curves(results, tmp_path / "b.png", title="Two learners")
    assert first == tmp_path / "new" / "a.png"
    assert first.read_bytes() == second.read_bytes()
    assert [p.name for p in first.parent.iterdir()] == ["a.png"]
    with Image.open(first) as image:
        image.load()
        width, height = drawn[0].get_size_inches()
        assert image.size == (round(width * 150), int(height * 150))
        assert 900 <= image.size[0] <= 1000
        assert "Software" not in image.info
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in plots.COLOURS[:2]:  # both lines are there, in their own colours
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(axis=1) <= 2).sum() > 200


@pytest.mark.parametrize(
    ("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_other_formats(tmp_path, suffix, start):
    results = example_results(12)
    files = [plots.plot_learning_curves(results, tmp_path / f"{n}{suffix}") for n in "ab"]
    content = files[0].read_bytes()
    assert content.startswith(start)
    assert content == files[1].read_bytes()


def test_lines_and_bands_are_the_statistics(tmp_path, drawn):
    results = example_results()
    plots.plot_learning_curves(
        results,
        tmp_path / "a.png",
        reported={"GPICL Transformer": {ENVS[0]: 0.737}, "MAML": {ENVS[0]: 0.5371}},
    )
    axes = drawn[0].axes
    assert [ax.get_title(loc="left") for ax in axes] == list(ENVS)
    seeds = results["LSTM"][ENVS[1]]
    mean, low, high = curve_interval(np.stack([r.correct for r in seeds]), seeds[0].task)
    line = axes[1].lines[1]
    assert line.get_xdata().tolist() == list(range(100))
    assert line.get_ydata() == pytest.approx(100 * mean)
    band = axes[1].collections[1].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(100 * low.min())
    assert band[:, 1].max() == pytest.approx(100 * high.max())
    assert axes[1].lines[2].get_ydata() == [10.0, 10.0]  # chance
    markers = [line for line in axes[0].lines if len(line.get_xdata()) == 1]
    assert [m.get_xdata()[0] for m in markers] == [99, 99]
    assert [m.get_ydata()[0] for m in markers] == pytest.approx([73.7, 53.71])
    assert markers[0].get_color() == axes[0].lines[0].get_color()  # the same method
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == [
        "GPICL Transformer",
        "LSTM",
        "GPICL Transformer (reported)",
        "MAML (reported)",
        "95 % interval over tasks",
        "1/C (guessing)",
    ]


def test_everything_lies_inside_the_figure_and_nothing_overlaps(tmp_path, drawn):
    envs = [f"{base}-Proj-v0" for base in ("MNIST", "KMNIST", "Random", "CIFAR10", "SVHN")]
    finals = np.linspace(0.12, 0.95, 7)
    results = {
        f"A method with a long name {i}": {
            env: [simulated_result(curve(final, 20), seed=i, env=env)] for env in envs
        }
        for i, final in enumerate(finals)
    }
    plots.plot_learning_curves(results, tmp_path / "a.png", title="A title")
    figure = drawn[0]
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == 5
    frame = figure.bbox
    boxes = [ax.get_tightbbox() for ax in shown] + [figure.legends[0].get_window_extent()]
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1, i
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1, i
        for other in boxes[:i]:
            apart = box.x0 >= other.x1 or other.x0 >= box.x1
            assert apart or box.y0 >= other.y1 or other.y0 >= box.y1
    edges = {round(ax.get_position().y0, 6) for ax in shown}
    assert len(edges) == 2  # two aligned rows
    sizes = {
        (round(ax.get_position().width, 6), round(ax.get_position().height, 6)) for ax in shown
    }
    assert len(sizes) == 1


def test_axes_hold_every_curve(tmp_path, drawn):
    for final, upper in ((0.11, 20), (0.22, 30), (0.3, 40), (0.45, 60), (0.99, 100)):
        results = {"m": {ENVS[0]: [simulated_result(np.full(5, final), seed=0)]}}
        plots.plot_learning_curves(results, tmp_path / "a.png")
        low, high = drawn[-1].axes[0].get_ylim()
        assert low == 0
        assert high == pytest.approx(1.015 * upper)


def test_panels_of_a_row_share_their_upper_end(tmp_path, drawn):
    finals = {"MNIST": 0.3, "KMNIST": 0.9, "Random": 0.15, "CIFAR10": 0.11, "SVHN": 0.22}
    results = {
        "m": {
            f"{base}-Proj-v0": [simulated_result(np.full(5, final), seed=0, env=f"{base}-Proj-v0")]
            for base, final in finals.items()
        }
    }
    plots.plot_learning_curves(results, tmp_path / "a.png")
    shown = [ax for ax in drawn[0].axes if ax.get_visible()]
    uppers = [ax.get_ylim()[1] / 1.015 for ax in shown]
    assert uppers == pytest.approx([100, 100, 100, 30, 30])  # three to a row
    assert [list(ax.get_yticks()) for ax in shown[3:]] == [[0, 10, 20, 30]] * 2


def test_titles_are_no_mathematics(tmp_path, drawn):
    results = {r"\frac{1$ _x$": {ENVS[0]: [simulated_result(curve(0.5, 5), seed=0)]}}
    plots.plot_learning_curves(results, tmp_path / "a.svg", title="$5 to $6 _{")
    assert drawn[0].get_suptitle() == r"\$5 to \$6 _{"
    assert drawn[0].legends[0].get_texts()[0].get_text() == r"\frac{1\$ _x\$"


def test_seeds_with_more_episodes_are_drawn_on_the_common_ones(tmp_path, drawn):
    long = simulated_result(curve(0.9, 5), seed=1)
    short = long.head(128)
    plots.plot_learning_curves({"m": {ENVS[0]: [long, short]}}, tmp_path / "a.png")
    assert drawn[0].axes[0].lines[0].get_ydata() == pytest.approx(100 * short.learning_curve)


def test_many_methods_look_different():
    styles = [plots._style(i) for i in range(42)]
    assert len({(s["color"], s["dashes"]) for s in styles}) == 42
    # In grey: neighbours in the list differ in their dashes.
    assert all(a["dashes"] != b["dashes"] for a, b in itertools.pairwise(styles))


def test_unusual_results_are_drawn(tmp_path, drawn):
    one_task = simulated_result(curve(0.7, 10), seed=0, task=np.zeros(256, dtype=int))
    one_step = simulated_result(curve(0.7, 1), seed=0, env=ENVS[1])
    results = {"a": {ENVS[0]: [one_task]}, "b": {ENVS[1]: [one_step]}, "c": {ENVS[1]: []}}
    plots.plot_learning_curves(results, tmp_path / "a.png")
    assert not drawn[0].axes[0].collections  # a single task has no interval: no band
    assert len(drawn[0].axes) == 2


def test_errors(tmp_path):
    results = example_results(5)
    with pytest.raises(ValueError, match=r"a\.gif: cannot draw '\.gif', use one of \.png, \.svg"):
        plots.plot_learning_curves(results, tmp_path / "a.gif")
    with pytest.raises(ValueError, match="no results to draw"):
        plots.plot_learning_curves({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"reported accuracy of MAML on .* not in \[0, 1\]: 53.7"):
        plots.plot_learning_curves(results, tmp_path / "a.png", reported={"MAML": {ENVS[0]: 53.7}})
    a, b = results["LSTM"][ENVS[0]]
    other = simulated_result(curve(0.5, 5), seed=1, fingerprint="cd" * 32)
    with pytest.raises(ValueError, match="seeds of LSTM on MNIST-Proj-v0 have different episodes"):
        plots.plot_learning_curves({"LSTM": {ENVS[0]: [a, b, other]}}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_no_global_state_and_no_pyplot(tmp_path):
    """In a fresh process: pyplot is never imported and the settings stay as they were."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import matplotlib
from synthetic_results import simulated_result
from icl_bench.evaluation import plots
def settings():  # asking for the backend would import pyplot
    return {{k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != "backend"}}
before = settings()
import numpy as np
results = {{"m": {{"MNIST-Proj-v0": [simulated_result(np.full(5, 0.5), seed=0)]}}}}
plots.plot_learning_curves(results, {str(tmp_path / "a.png")!r})
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
    with Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())) as image:
        image.verify()
