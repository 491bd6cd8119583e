"""Pictures of episodes: every example as it was, as it is projected, its label and prediction."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

COLUMNS = 20
RIGHT, WRONG, OPEN = "#2166ac", "#b2182b", "#777777"


def draw_episode(
    images: Float[np.ndarray, "n D"],
    projected: Float[np.ndarray, "n D"],
    *,
    labels: Int[np.ndarray, " n"],
    predictions: Sequence[int] | None,
    image_shape: tuple[int, int, int],
    title: str,
    what: str = "image",
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the first n examples of an episode, 20 to a row.

    Args:
        images: Inputs before normalisation and projection, in [0, 1], flattened C, H, W.
        projected: Inputs after the projection.
        labels: Permuted labels.
        predictions: Predicted labels of the first steps; labels of later steps are not shown,
            as in the episode. ``None`` shows all labels.
        image_shape: (channels, height, width).
        title: Line above the picture.
        what: What the inputs are, for that line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(images)
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(0.62 * COLUMNS + 0.3, 1.72 * rows + 0.7), dpi=100)
    canvas = FigureCanvasAgg(figure)
    made = list(predictions or [])
    hits = sum(int(p == y) for p, y in zip(made, labels[: len(made)], strict=True))
    note = f"{what}, projection, label"
    if predictions is not None:
        note = f"{what}, projection, prediction → label: {hits} of {len(made)} right"
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.28 / height, f"{title} · {note}", fontsize=11, va="center")
    for i in range(count):
        row, column = divmod(i, COLUMNS)
        left = (0.15 + 0.62 * column) / figure.get_figwidth()
        top = 0.6 + 1.72 * row
        colour, text = OPEN, "?" if predictions is not None else str(labels[i])
        if i < len(made):
            colour = RIGHT if made[i] == labels[i] else WRONG
            text = f"{made[i]} → {labels[i]}"
        for offset, values in ((0.62, _image(images[i])), (1.22, _contrast(projected[i]))):
            bottom = 1 - (top + offset) / figure.get_figheight()
            size = (0.56 / figure.get_figwidth(), 0.56 / figure.get_figheight())
            axes = figure.add_axes((left, bottom, *size))
            picture = values.reshape(image_shape).transpose(1, 2, 0)
            if image_shape[0] == 1:
                axes.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=1)
            else:
                axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(colour)
                spine.set_linewidth(1.6)
        middle = left + 0.28 / figure.get_figwidth()
        bottom = 1 - (top + 1.4) / figure.get_figheight()
        figure.text(middle, bottom, text, fontsize=8, ha="center", color=colour, weight="bold")
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: np.ndarray = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def _image(values: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    return np.asarray(np.clip(values, 0.0, 1.0))


def _contrast(values: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    """Projected values on a fixed scale: −3 is black, 3 is white."""
    return np.asarray(np.clip(values / 6.0 + 0.5, 0.0, 1.0))
