"""What an episode is: the tensors that every environment, learner and scorer exchanges.

Shape legend, used in every signature of the library (batch first everywhere):

    B  episodes in a batch
    T  steps of an episode (T = 100 in the standard protocol)
    D  input features of a projected example (3072, 196 or 64)
    C  classes (10 in the standard environments)
    F  features of a token: F = D + C
"""

import dataclasses
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

Split = Literal["train", "val", "seen", "unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)


def shift_labels(y: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Labels shifted one step to the right: entry t is y_{t-1}, and -1 at step 0."""
    first = torch.full_like(y[:, :1], -1)
    return torch.cat([first, y[:, :-1]], dim=1)


def one_hot_labels(prev_y: Int[Tensor, "B T"], num_classes: int) -> Float[Tensor, "B T C"]:
    """One-hot encoding of previous labels; the zero vector where ``prev_y`` is -1."""
    classes = torch.arange(num_classes, device=prev_y.device)
    return (prev_y[..., None] == classes).to(torch.float32)


@dataclasses.dataclass(frozen=True)
class EpisodeBatch:
    """A batch of episodes on one device.

    Attributes:
        x: Projected inputs A x̄_t, normalised before the projection; about unit variance.
        y: Permuted labels ρ(ȳ_t) in [0, C).
        task_id: The task k of each episode; the episode id where tasks are unbounded.
        num_classes: C.

    Source: Kirsch et al. 2022, §3.1.
    """

    x: Float[Tensor, "B T D"]
    y: Int[Tensor, "B T"]
    task_id: Int[Tensor, " B"]
    num_classes: int

    @property
    def prev_y(self) -> Int[Tensor, "B T"]:
        """The label that the token of step t carries: y_{t-1}, and -1 at step 0."""
        return shift_labels(self.y)

    def tokens(self) -> Float[Tensor, "B T F"]:
        """Tokens concat(x_t, one_hot(y_{t-1})); the label part is zero at step 0.

        Source: Kirsch et al. 2022, §3.2.
        """
        return torch.cat([self.x, one_hot_labels(self.prev_y, self.num_classes)], dim=-1)

    def __len__(self) -> int:
        return self.y.shape[0]


@dataclasses.dataclass(frozen=True)
class TextExample:
    """One example of a text task.

    Attributes:
        input: The given text; may be empty.
        output: The right answer.
        options: The candidate answers; none in a free-form task.
    """

    input: str
    output: str
    options: tuple[str, ...] = ()

    @property
    def answer(self) -> int:
        """Index of the right option, the first of equal ones.

        Raises:
            ValueError: If there is none, as in a free-form task.
        """
        return self.options.index(self.output)


@dataclasses.dataclass(frozen=True)
class TextEpisode:
    """A query of a text task after demonstrations of the same task.

    Attributes:
        task: Name of the task.
        demonstrations: The k examples, in their order; the query is none of them.
        query: What is asked; its output is for the scorer, never for a learner.
        episode: Number of the episode in its stream; of a split that is walked through task by
            task the number of the query in its task's file.
        demo_seed: The draw of demonstrations; None where each episode has its own.
    """

    task: str
    demonstrations: tuple[TextExample, ...]
    query: TextExample
    episode: int
    demo_seed: int | None = None
