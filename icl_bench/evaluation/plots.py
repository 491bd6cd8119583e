"""Figures of learning curves and episodes, without pyplot: no global state, no display, no date.

Colours are Okabe and Ito's, which people with any common colour blindness can tell apart; every
method has its own dashes and marker too, so that a grey print can be read.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from icl_bench.catalog import View
from icl_bench.envs.source import EnvArgs, EpisodeSource
from icl_bench.evaluation.metrics import chance, clusters
from icl_bench.evaluation.result import Result
from icl_bench.evaluation.statistics import curve_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, "Color Universal Design"; without the yellow, which is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 1.5),
    (1.2, 1.2),
    (6, 1.5, 1.2, 1.5),
    (3, 1, 1, 1, 1, 1),
    (9, 2.5),
)
MARKERS = ("o", "s", "D", "^", "v", "P")
BAND, CHANCE = "95 % interval over tasks", "1/C (guessing)"
INK, FAINT = "#333333", "#D9D9D9"
DPI = 150

# Each suffix with the metadata that would otherwise carry the date or the program.
FORMATS: Mapping[str, Mapping[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}

# Upper ends of the accuracy axis in %, and the distance of its ticks: the first that fits.
AXES = ((20, 5), (30, 10), (40, 10), (60, 20), (80, 20), (100, 25))

PANEL_WIDTH, PANEL_HEIGHT = 2.9, 2.45  # inches
TITLE_HEIGHT = 0.35  # inches

# The picture of an episode: steps, and pixels of a tile, between tiles, and around them.
STEPS, TILE, GAP = 10, 64, 8
LEFT, TOP, BOTTOM = 84, 30, 28
PALETTE = 64  # colours of the file, which must be small


def plot_learning_curves(
    results: Mapping[str, Mapping[str, Sequence[Result]]],
    path: str | os.PathLike[str],
    *,
    reported: Mapping[str, Mapping[str, float]] | None = None,
    title: str | None = None,
) -> Path:
    """Draw accuracy against the number of labelled examples seen, one panel per environment.

    Every method is the mean over its meta-training seeds with a 95 % band, step by step, for the
    given checkpoints (bootstrap clustered on tasks; no band where there is a single task). Axes
    start at 0 %; the panels of a row share their upper end. Atomic, and equal bytes for equal
    results under one version of matplotlib.

    Args:
        results: Method → environment id → one result per seed, on identical episodes (if a seed
            has more than another, the first ones count). A method may lack an environment.
        path: Where to write; .png (150 dpi), .svg or .pdf.
        reported: Method → environment id → accuracy at the last step in [0, 1], as a paper
            reports it; drawn as a hollow marker at the right edge.
        title: A line above the panels.

    Raises:
        ValueError: If the suffix is another, there is nothing to draw, a method's seeds differ in
            episodes, results on one environment are by features of several networks, or a
            reported accuracy is not in [0, 1].
    """
    path, reported = Path(path), reported or {}
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: cannot draw {suffix!r}, use one of {', '.join(FORMATS)}")
    envs = list(dict.fromkeys(env for by_env in results.values() for env in by_env))
    if not envs:
        raise ValueError(f"{path}: no results to draw")
    _check_networks(results, path)
    for method, by_env in reported.items():
        for env, value in by_env.items():
            if not 0 <= value <= 1:
                raise ValueError(f"reported accuracy of {method} on {env} not in [0, 1]: {value}")

    import matplotlib as mpl

    from icl_bench.data.cache import atomic_path

    # Only what reaches the file: fonts, and names inside of SVG and PDF.
    style: Any = {
        "font.family": ["DejaVu Sans"],
        "font.size": 8.5,
        "svg.hashsalt": "icl_bench",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
    }
    with mpl.rc_context(style):
        figure = _draw(results, reported, envs, title)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=DPI, metadata=dict(FORMATS[suffix]))
    return path


def _draw(
    results: Mapping[str, Mapping[str, Sequence[Result]]],
    reported: Mapping[str, Mapping[str, float]],
    envs: list[str],
    title: str | None,
) -> "Figure":
    """The whole figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys([*results, *reported]))
    styles = {name: _style(i) for i, name in enumerate(names)}
    num_columns = min(len(envs), 2 if len(envs) == 4 else 3)
    num_rows = -(-len(envs) // num_columns)
    width = num_columns * PANEL_WIDTH + 0.4
    figure = Figure(figsize=(width, num_rows * PANEL_HEIGHT), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.07, w_pad=0.07)  # type: ignore[union-attr,call-arg]
    FigureCanvasAgg(figure)
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax in axes[len(envs) :]:
        ax.set_visible(False)

    handles: dict[str, Any] = {}
    tops = np.zeros(len(axes))
    for i, (ax, env) in enumerate(zip(axes, envs, strict=False)):
        tops[i], drawn = _draw_panel(ax, env, results, reported, styles)
        handles |= drawn
        if i % num_columns == 0:
            ax.set_ylabel("accuracy (%)", color=INK)
        if i + num_columns >= len(envs):
            ax.set_xlabel("labelled examples seen", color=INK)
    for row in range(num_rows):
        of_row = slice(row * num_columns, (row + 1) * num_columns)
        _scale(list(axes[of_row]), float(tops[of_row].max()))
    order = [*results, *(f"{m} (reported)" for m in reported), BAND, CHANCE]
    shown = [name for name in order if name in handles]
    texts = [_plain(name) for name in shown]
    legend_height = _draw_legend(figure, [handles[name] for name in shown], texts)
    title_height = TITLE_HEIGHT if title else 0.0
    figure.set_size_inches(width, num_rows * PANEL_HEIGHT + legend_height + title_height)
    if title:
        figure.suptitle(_plain(title), fontsize=11, fontweight="bold", color=INK)
    return figure


def _check_networks(results: Mapping[str, Mapping[str, Sequence[Result]]], path: Path) -> None:
    """Raise where a panel would show features of several networks as if they were one."""
    found: dict[str, set[str]] = {}
    for by_env in results.values():
        for env, seeds in by_env.items():
            found.setdefault(env, set()).update(
                str(result.env_kwargs["network"])
                for result in seeds
                if "network" in result.env_kwargs
            )
    for env, networks in found.items():
        if len(networks) > 1:
            raise ValueError(
                f"{path}: results on {env} are by features of {' and '.join(sorted(networks))}: "
                "draw a figure of each network"
            )


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _scale(row: Sequence["Axes"], top: float) -> None:
    """Give the panels of a row one accuracy axis that holds all of their curves."""
    upper, distance = next(((u, d) for u, d in AXES if 100 * top <= u), AXES[-1])
    for ax in row:
        ax.set_ylim(0, 1.015 * upper)  # a line at 100 % keeps its full width
        ax.set_yticks(range(0, upper + 1, distance))


def _draw_legend(figure: "Figure", handles: list[Any], names: list[str]) -> float:
    """One legend below the panels, of as many columns as fit; returns its height in inches."""
    for num_columns in range(min(4, len(names)), 0, -1):
        legend = figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=num_columns,
            frameon=False,
            handlelength=3.2,
            columnspacing=1.6,
            labelcolor=INK,
        )
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or num_columns == 1:
            break
        legend.remove()
    return float(box.height / figure.dpi)


def _style(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of the i-th method; the first 42 differ."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "dashes": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


def _draw_panel(
    ax: "Axes",
    env: str,
    results: Mapping[str, Mapping[str, Sequence[Result]]],
    reported: Mapping[str, Mapping[str, float]],
    styles: Mapping[str, Mapping[str, Any]],
) -> tuple[float, dict[str, Any]]:
    """One environment; returns its highest accuracy and the legend's handles by name."""
    from matplotlib.patches import Patch

    handles: dict[str, Any] = {}
    top, length, floor = 0.0, 2, 0.0
    alpha = 0.16 if len(results) <= 4 else 0.11  # many bands on top of each other turn to mud
    for method, by_env in results.items():
        if not by_env.get(env):
            continue
        result = by_env[env][0]
        mean, band = _curve(method, by_env[env])
        steps = np.arange(len(mean))
        colour, dashes = styles[method]["color"], styles[method]["dashes"]
        (handles[method],) = ax.plot(
            steps, 100 * mean, color=colour, dashes=dashes, linewidth=1.5, zorder=3
        )
        if band is not None:
            low, high = band
            ax.fill_between(
                steps, 100 * low, 100 * high, color=colour, alpha=alpha, linewidth=0, zorder=2
            )
            handles[BAND] = Patch(color="#888888", alpha=0.35, linewidth=0)
        top = max(top, float((mean if band is None else band[1]).max()))
        length, floor = max(length, len(mean)), chance(result)
    handles[CHANCE] = ax.axhline(
        100 * floor, color="#777777", linewidth=0.9, linestyle=":", zorder=1
    )
    for method, accuracies in reported.items():
        if env in accuracies:
            top = max(top, accuracies[env])
            (handles[f"{method} (reported)"],) = ax.plot(
                [length - 1],
                [100 * accuracies[env]],
                linestyle="none",
                marker=styles[method]["marker"],
                color=styles[method]["color"],
                markerfacecolor="white",
                markersize=5,
                clip_on=False,
                zorder=4,
            )
    ax.set_title(env, loc="left", fontsize=9, fontweight="bold", color=INK)
    ax.set_xlim(0, length - 1)
    ax.set_xticks(np.unique(np.linspace(0, length, 5).clip(max=length - 1).astype(int)))
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(color=FAINT, labelcolor=INK, length=3)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#999999")
    return top, handles


def _curve(
    method: str, seeds: Sequence[Result]
) -> tuple[Float[np.ndarray, " T"], tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]] | None]:
    """Mean curve over seeds, and its band unless there is a single task."""
    shortest = min(len(result.episode) for result in seeds)
    seeds = [result.head(shortest) for result in seeds]
    first = seeds[0]
    for other in seeds[1:]:
        if other.fingerprint != first.fingerprint or not np.array_equal(
            other.episode, first.episode
        ):
            raise ValueError(f"the seeds of {method} on {first.env} have different episodes")
    correct = np.stack([result.correct for result in seeds]).astype(np.float64)
    cluster = clusters(first)
    if len(np.unique(cluster)) < 2:
        return correct.mean(axis=(0, 1)), None
    mean, low, high = curve_interval(correct, cluster, balanced=False)
    return mean, (low, high)


def plot_episode(
    env_id: str,
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Draw the first ten steps of frozen episode 0: image, projected input and label.

    A small PNG whose tiles are whole multiples of the view's pixels. Atomic, and equal bytes for
    equal data under one version of matplotlib and Pillow.

    Args:
        env_id: Environment of vectors.
        path: Where to write, .png.
        data_dir: Data folder that is looked in first.

    Raises:
        FileNotFoundError: If the data are not at hand.
        ValueError: For an unknown environment or one of text, or another suffix.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: an episode is drawn as .png")
    source = EpisodeSource(env_id, EnvArgs(split="unseen"), data_dir=data_dir)

    import matplotlib as mpl
    from PIL import Image

    from icl_bench.data.cache import atomic_path

    with mpl.rc_context({"font.family": ["DejaVu Sans"], "font.size": 8.5}):
        picture = Image.fromarray(_episode_pixels(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        small = picture.quantize(PALETTE, dither=Image.Dither.NONE)
        small.save(temporary, format="png", optimize=True)
    return path


def _episode_pixels(source: EpisodeSource) -> UInt8[np.ndarray, "height width 3"]:
    """The whole picture of an episode."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sampler, plan = source.sampler, source.plan([0])
    images = np.tile(sampler.shown(plan)[0, :STEPS].numpy(), (1, sampler.copies))
    seen = sampler.realise(plan).x[0, :STEPS].numpy()
    what = "image" if sampler.view.network is None else "features"
    rows = ((what, images), ("input xₜ", seen / 6 + 0.5))  # −3 is black, 3 is white
    width = LEFT + STEPS * (TILE + GAP)
    height = TOP + len(rows) * (TILE + GAP) + BOTTOM
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)

    def write(x: int, y: int, text: str, **style: Any) -> None:
        """Text at so many pixels from the left and from above."""
        figure.text(x / width, 1 - y / height, text, va="center", color=INK, **style)

    title = f"{source.spec.id} · frozen episode 0, steps 0 to {STEPS - 1}"
    write(GAP, TOP // 2, title, fontweight="bold")
    for row, (name, values) in enumerate(rows):
        top = TOP + row * (TILE + GAP)
        write(GAP, top + TILE // 2, name)
        for step, value in enumerate(values):
            tile = _tile(value, sampler.view)
            above, before = ((TILE - side) // 2 for side in tile.shape[:2])
            left = LEFT + step * (TILE + GAP) + before
            figure.figimage(tile, left, height - top - above - len(tile), origin="upper")
    middle = height - BOTTOM // 2 - GAP // 2
    write(GAP, middle, "label yₜ")
    for step, label in enumerate(plan.y[0, :STEPS]):
        write(LEFT + step * (TILE + GAP) + TILE // 2, middle, str(label), ha="center")
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: np.ndarray = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def _tile(values: Float[np.ndarray, " D"], view: View) -> UInt8[np.ndarray, "height width 3"]:
    """An input as an image, each of its pixels as large as fits, without a blend between them."""
    pixels = np.rint(np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)
    pixels = pixels.reshape(view.channels, view.height, view.width).transpose(1, 2, 0)
    scale = TILE // max(view.height, view.width)
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.broadcast_to(large, (*large.shape[:2], 3)).copy()
