"""Pictures of episodes: every example as it was, as it is projected, its label and prediction."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

COLUMNS = 20
RIGHT, WRONG, OPEN = "#1b7837", "#b2182b", "#777777"


def draw_episode(
    images: Float[np.ndarray, "n D"],
    projected: Float[np.ndarray, "n D"],
    *,
    labels: Int[np.ndarray, " n"],
    predictions: Sequence[int],
    image_shape: tuple[int, int, int],
    title: str,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the first n examples of an episode, 20 to a row.

    Args:
        images: Inputs before normalisation and projection, in [0, 1], flattened C, H, W.
        projected: Inputs after the projection.
        labels: Permuted labels; shown only for steps that have a prediction, as in the episode.
        predictions: Predicted labels of the first steps; those beyond are still open.
        image_shape: (channels, height, width).
        title: Line above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(images)
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(0.62 * COLUMNS + 0.3, 1.72 * rows + 0.7), dpi=100)
    canvas = FigureCanvasAgg(figure)
    known = len(predictions)
    hits = sum(int(p == y) for p, y in zip(predictions, labels[:known], strict=True))
    score = f" · {hits} of {known} right" if known else ""
    figure.text(0.012, 1 - 0.28 / figure.get_figheight(), title + score, fontsize=11, va="center")
    for i in range(count):
        row, column = divmod(i, COLUMNS)
        left = (0.15 + 0.62 * column) / figure.get_figwidth()
        top = 0.6 + 1.72 * row
        colour, text = OPEN, f"{i}: ?"
        if i < known:
            colour = RIGHT if predictions[i] == labels[i] else WRONG
            text = f"{predictions[i]}→{labels[i]}"
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
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _image(values: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    return np.clip(values, 0.0, 1.0)


def _contrast(values: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
    """Projected values on a fixed scale: −3 is black, 3 is white."""
    return np.clip(values / 6.0 + 0.5, 0.0, 1.0)
