"""MAML: a classifier whose initial weights are meta-trained, and then learns by gradient descent.

The row "MAML" of Table 2 (Kirsch et al. 2022, appendix A.3): the learner of ``baselines.sgd``, but
its initial weights minimise the loss of every prediction of the episode (eq. 2), each made after
the online updates so far. Backpropagation goes through all updates (Finn et al. 2017).

    python -m baselines.maml --env MNIST-Proj-v0 --preset paper                    # one GPU
    python -m baselines.maml --env MNIST-Proj8-v0 --preset cpu                     # a laptop
    python -m baselines.maml --preset cpu --algorithm fomaml                       # first order
    python -m baselines.maml --preset cpu --algorithm reptile
    python -m baselines.maml --preset cpu --learn-rates                            # Meta-SGD
    python -m baselines.maml --preset cpu --form support-query --inner-steps 5

``--form online``: one update per example, as soon as its label is known. ``--form support-query``,
the classic one: every ``refresh`` steps the initial weights are adapted anew, by ``inner_steps``
steps on the mean loss of all examples so far (the support); the examples until the next refresh
are the queries.

Differs from the papers: Li et al. 2017 and Nichol et al. 2018 have plain descent as update and, for
Reptile, as outer step; ours have what ``--inner-optimizer`` and ``--optimizer`` say. GPICL does not
say whether the inner update is plain SGD or the Adam of the row "SGD". Ours: Adam, 1e-3, as that
row; ``--inner-optimizer sgd`` is the other reading. Adam's ε is inside the root, where second
derivatives stay finite. Outer learning rate and steps are not stated either.

Gradients of updates are written out: ``torch.func`` cannot be used in the checkpoints that keep 100
updates of 30,730 weights within memory.
"""

import dataclasses
import itertools
import sys
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from baselines import common, train
from baselines.sequence import Method, SequenceModel
from baselines.train_config import TrainConfig
from icl_bench.episodes import one_hot_labels

Algorithm = Literal["maml", "fomaml", "reptile"]


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """MAML, first-order MAML, Reptile and Meta-SGD."""

    remedy: ClassVar[str] = "A smaller --inner-lr or --lr"
    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: as in Table 2. gpu: with unbounded tasks. cpu: 8×8 pixels."""
    compile: bool | None = False
    """torch.compile; it would unroll every update of an episode."""
    algorithm: Algorithm = "maml"
    """maml: second order. fomaml: gradients of updates count as constants. reptile: towards the
    weights at the end of the episode (Nichol et al. 2018)."""
    form: Literal["online", "support-query"] = "online"
    """online: one update per example. support-query: anew from all examples so far."""
    hidden: int = 0
    """Units of a hidden layer with ReLU; 0 = no hidden layer."""
    inner_optimizer: Literal["sgd", "adam"] = "adam"
    """Of the updates: plain gradient descent, or Adam."""
    inner_lr: float = 1e-3  # of the row "SGD": Kirsch et al. 2022, A.3
    """Learning rate of the updates."""
    inner_steps: int = 1
    """Updates per example (online) or per support set."""
    refresh: int = 10
    """Steps of the episode between two support sets; nothing to ``online``."""
    learn_rates: bool = False
    """Meta-SGD (Li et al. 2017): a learned rate for every weight, which begins at inner_lr."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        common.require(common.positive(self.inner_lr), "inner_lr", self.inner_lr, "above 0")
        for name in ("inner_steps", "refresh"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        common.require(self.hidden >= 0, "hidden", self.hidden, "0 or more")
        if self.learn_rates and self.algorithm == "reptile":
            raise ValueError("--learn-rates: Reptile has no gradient for them; use maml or fomaml")

    @property
    def variant(self) -> str | None:
        """Name of the entry."""
        if self.learn_rates:
            return "meta-sgd"
        return None if self.algorithm == "maml" else self.algorithm


def paper() -> Config:
    """Table 2: batch 128, 2^25 tasks, 90 % biased permutations (Kirsch et al. 2022, A.4)."""
    return Config()


def gpu() -> Config:
    """The same on unbounded tasks with uniform permutations, as at meta-test."""
    return Config(
        preset="gpu", num_tasks=None, bias=0.0, steps=5000, warmup=100, decay="cosine", clip=1.0
    )


def cpu() -> Config:
    """8×8 pixels, with the learning rate of the preset of ``baselines.sgd``."""
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        inner_lr=1e-2,
        num_tasks=None,
        bias=0.0,
        batch_size=32,
        steps=1000,
        lr=3e-3,
        warmup=50,
        decay="cosine",
        clip=1.0,
        eval_every=250,
        checkpoint_every=250,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam: PyTorch's defaults

Weights = list[Tensor]  # of each layer, the bias as last column [B, out, in + 1]


@dataclasses.dataclass
class Inner:
    """The classifiers of a batch of episodes.

    Attributes:
        weights: Their weights.
        moments: Adam's two of each layer; none for plain descent.
        updates: How many there were.
    """

    weights: Weights
    moments: list[tuple[Tensor, Tensor]]
    updates: int = 0


class MAML(SequenceModel):
    """Classifiers with meta-trained initial weights: what both forms share.

    Args:
        config: algorithm, hidden and the updates.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        widths = [num_features, *([config.hidden] if config.hidden else []), num_classes]
        self.initial, self.rates = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(widths):
            # The law of torch.nn.Linear.
            weight = torch.empty(fan_out, fan_in + 1).uniform_(-(fan_in**-0.5), fan_in**-0.5)
            self.initial.append(nn.Parameter(weight))
            if config.learn_rates:
                self.rates.append(nn.Parameter(torch.full_like(weight, config.inner_lr)))
        self._ends: Weights = []  # of the last pass in training, for Reptile

    @property
    def numbers(self) -> int:
        """Numbers of a classifier on its way: weights, and Adam's moments."""
        weights = sum(w.numel() for w in self.initial)
        return weights * (3 if self.config.inner_optimizer == "adam" else 1)

    def forward(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits of all steps in one pass."""
        # 32 bits, also under autocast: updates are smaller than the rounding of bf16.
        with torch.autocast(x.device.type, enabled=False):
            if not self.training or self.config.algorithm != "reptile":
                return super().forward(x, prev_y)
            with torch.no_grad():
                logits, after = self.steps(x, prev_y, self.begin(len(x)))
            self._ends = after[0].weights
            return logits

    def objective(self, losses: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
        """The mean loss; for Reptile, what has θ − (mean of the episodes' last θ) as gradient."""
        if self.config.algorithm != "reptile":
            return losses.mean()
        pairs = zip(self.initial, self._ends, strict=True)
        return torch.stack([(w * (w - end.mean(dim=0)).detach()).sum() for w, end in pairs]).sum()

    def fresh(self, batch_size: int) -> Inner:
        """Classifiers with the initial weights."""
        weights = [w.expand(batch_size, -1, -1) for w in self.initial]
        adam = self.config.inner_optimizer == "adam"
        moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights if adam]
        return Inner(weights, moments)

    def update(self, inner: Inner, inputs: list[Tensor], error: Float[Tensor, "B N C"]) -> Inner:
        """One update on N examples, whose cross entropies' gradient by the logits is ``error``."""
        number, moments, moves = inner.updates + 1, [], []
        second = torch.is_grad_enabled() and self.config.algorithm == "maml"
        with torch.set_grad_enabled(second):
            for i in reversed(range(len(inner.weights))):
                gradient = error.transpose(1, 2) @ inputs[i]
                if i > 0:
                    error = (error @ inner.weights[i][..., :-1]) * (inputs[i][..., :-1] > 0)
                if inner.moments:
                    pair = _averages(gradient, inner.moments[i])
                    moments.insert(0, pair)
                    first, second_moment = (
                        m / (1 - beta**number) for m, beta in zip(pair, BETAS, strict=True)
                    )
                    gradient = first * (second_moment + EPS**2).rsqrt()
                moves.insert(0, gradient)
        rates = self.rates if self.config.learn_rates else [self.config.inner_lr] * len(moves)
        weights = [w - r * d for w, r, d in zip(inner.weights, rates, moves, strict=True)]
        return Inner(weights, moments, number)


def _averages(gradient: Tensor, moments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    first, second = moments
    return (
        BETAS[0] * first + (1 - BETAS[0]) * gradient,
        BETAS[1] * second + (1 - BETAS[1]) * gradient.square(),
    )


def classify(
    weights: Weights, x: Float[Tensor, "B N D"]
) -> tuple[Float[Tensor, "B N C"], list[Tensor]]:
    """Logits of N examples of every episode; the inputs of each layer, with a 1 for the bias."""
    inputs = []
    for i, weight in enumerate(weights):
        x = functional.pad(x.relu() if i else x, (0, 1), value=1.0)
        inputs.append(x)
        x = x @ weight.transpose(1, 2)
    return x, inputs


# The classifiers; of the step before, inputs of each layer and logits: none at the first step.
OnlineState = tuple[Inner, list[Tensor], Tensor | None]


class Online(MAML):
    """One update per example, or a few, before the next one is classified."""

    def begin(self, batch_size: int) -> OnlineState:
        """The initial weights."""
        return self.fresh(batch_size), [], None

    def steps(
        self, x: Float[Tensor, "B S D"], prev_y: Int[Tensor, "B S"], state: OnlineState
    ) -> tuple[Float[Tensor, "B S C"], OnlineState]:
        """Logits of the next S steps, and the state after them."""
        inner, inputs, logits = state
        labels = one_hot_labels(prev_y, self.num_classes)
        answers = []
        for t in range(x.shape[1]):
            if logits is not None:  # the label of the step before has arrived
                inner = self.update(inner, inputs, logits.softmax(dim=-1) - labels[:, t, None])
                for _ in range(self.config.inner_steps - 1):
                    logits, inputs = classify(inner.weights, inputs[0][..., :-1])
                    inner = self.update(inner, inputs, logits.softmax(dim=-1) - labels[:, t, None])
            logits, inputs = classify(inner.weights, x[:, t, None])
            answers.append(logits)
        return torch.cat(answers, dim=1), (inner, inputs, logits)

    def kept_by_step(self, batch_size: int) -> int:
        """At most about all numbers of an update."""
        return batch_size * self.numbers * self.config.inner_steps

    def state_size(self, episode_length: int) -> int:
        """Weights, and Adam's moments."""
        return self.numbers


# The classifiers, and all tokens so far: inputs [B, n, D], label of the example before [B, n].
SupportQueryState = tuple[Inner, Tensor, Tensor]


class SupportQuery(MAML):
    """Adapted anew from the initial weights every ``refresh`` steps, to all examples so far."""

    def begin(self, batch_size: int) -> SupportQueryState:
        """The initial weights, and no tokens."""
        inner = self.fresh(batch_size)
        features = inner.weights[0].shape[2] - 1
        nothing = inner.weights[0].new_zeros(batch_size, 0, features)
        return inner, nothing, torch.zeros(batch_size, 0, dtype=torch.int64, device=nothing.device)

    def steps(
        self, x: Float[Tensor, "B S D"], prev_y: Int[Tensor, "B S"], state: SupportQueryState
    ) -> tuple[Float[Tensor, "B S C"], SupportQueryState]:
        """Logits of the next S steps, and the state after them."""
        inner, tokens, known = state
        at, every = tokens.shape[1], self.config.refresh
        tokens, known = torch.cat([tokens, x], dim=1), torch.cat([known, prev_y], dim=1)
        answers = []
        while at < tokens.shape[1]:
            if at % every == 0 and at > 0:
                inner = self._adapt(tokens[:, :at], known[:, 1 : at + 1])
            end = min(at - at % every + every, tokens.shape[1])
            answers.append(classify(inner.weights, tokens[:, at:end])[0])
            at = end
        return torch.cat(answers, dim=1), (inner, tokens, known)

    def _adapt(self, x: Float[Tensor, "B N D"], y: Int[Tensor, "B N"]) -> Inner:
        inner, labels = self.fresh(len(x)), one_hot_labels(y, self.num_classes)
        for _ in range(self.config.inner_steps):
            logits, inputs = classify(inner.weights, x)
            inner = self.update(inner, inputs, (logits.softmax(dim=-1) - labels) / x.shape[1])
        return inner

    def kept_by_step(self, batch_size: int) -> int:
        """At most about all numbers of an update, at every refresh."""
        return batch_size * self.numbers * self.config.inner_steps // self.config.refresh

    def state_size(self, episode_length: int) -> int:
        """Weights and all tokens; moments do not outlive an adaptation."""
        weights = sum(w.numel() for w in self.initial)
        return weights + episode_length * self.initial[0].shape[1]


def build(config: Config, num_features: int, num_classes: int) -> MAML:
    """The form that the settings name."""
    form = Online if config.form == "online" else SupportQuery
    return form(config, num_features, num_classes)


TITLES = {"meta-sgd": "Meta-SGD", "fomaml": "First-order MAML", "reptile": "Reptile"}
METHOD = Method("maml", "MAML", "Backprop, SGD", build, PRESETS, TITLES)

if __name__ == "__main__":
    sys.exit(train.main(METHOD, __doc__ or ""))
