"""SGD: train a classifier from scratch on every episode, one online update per example.

The row "SGD" of Table 2 of GPICL (Kirsch et al. 2022, appendix A.3, A.4): nothing is
meta-trained. At step t the classifier predicts the class of x_t and then takes one optimizer step
on (x_t, y_t). The defaults are the best setting of the paper's sweep: no hidden layer, Adam,
learning rate 1e-3.

    python -m baselines.sgd --env MNIST-Proj-v0
    python -m baselines.sgd --suite table2-v0 --seed 1
    python -m baselines.sgd --env MNIST-Proj-v0 --sweep

Differs from the paper: it states neither the initialisation (ours is the law of
torch.nn.Linear, drawn once per seed, the same for all episodes) nor the weight decay of the sweep.
"""

import csv
import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

import icl_bench
from baselines import cli, common
from icl_bench.data.cache import atomic_path
from icl_bench.evaluation.statistics import task_interval
from icl_bench.leaderboard.learner_files import SETTINGS, write_settings
from icl_bench.registration import find_spec
from icl_bench.tasks import counter

OptimizerName = Literal["sgd", "adam", "adamw"]

# Kirsch et al. 2022, appendix A.3: "1e-4 … 0.5", without the values between.
PAPER_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 5e-1)
PAPER_HIDDEN = (0, 32, 64, 128)  # the same; one or two layers of weights

# Parameters of one part of a batch, so that they, their gradient and Adam's moments stay in a
# CPU's cache: 8 episodes of 10 × 3072 weights. Measured: four times faster than 64 at once.
PART_NUMBERS, MIN_PART, MAX_PART = 2**18, 8, 64
ALIGN = 16  # numbers of one cache line, so that every episode is computed by the same instructions


@dataclasses.dataclass(frozen=True)
class Config(common.RunConfig):
    """SGD on every episode, from scratch."""

    preset: Literal["paper", "cpu"] = "paper"
    """paper: the best setting of the paper's sweep. cpu: 8×8 pixels and a smaller sweep."""
    optimizer: OptimizerName = "adam"
    """sgd (plain), adam, or adamw (Adam with decoupled weight decay)."""
    lr: float = 1e-3
    """Learning rate of the online updates."""
    weight_decay: float = 0.0
    """As in torch.optim: decoupled for adamw, a term of the gradient for sgd and adam."""
    hidden: int = 0
    """Units of a hidden layer with ReLU; 0 = no hidden layer."""
    sweep: bool = False
    """Run the paper's sweep on validation tasks instead of an evaluation."""
    sweep_rates: tuple[float, ...] = PAPER_RATES
    """Learning rates of the sweep."""
    sweep_hidden: tuple[int, ...] = PAPER_HIDDEN
    """Hidden sizes of the sweep."""
    sweep_weight_decay: float = 0.01
    """Weight decay of adamw in the sweep."""
    sweep_episodes: int = 64
    """Validation episodes of the sweep, each of a task of its own."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        common.require(common.positive(self.lr), "lr", self.lr, "above 0")
        for name in ("weight_decay", "sweep_weight_decay", "hidden"):
            value = getattr(self, name)
            common.require(value == 0 or common.positive(value), name, value, "0 or more")
        rates, hidden = self.sweep_rates, self.sweep_hidden
        common.require(all(map(common.positive, rates)), "sweep_rates", rates, "above 0")
        common.require(all(n >= 0 for n in hidden), "sweep_hidden", hidden, "0 or more")
        common.require(self.sweep_episodes >= 2, "sweep_episodes", self.sweep_episodes, "2 or more")


def paper() -> Config:
    """The best setting of the paper's sweep."""
    return Config()


def cpu() -> Config:
    """The same at 8×8 pixels, with the best learning rate there and a smaller sweep."""
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        lr=1e-2,
        sweep_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        sweep_hidden=(0, 64),
    )


PRESETS = {"paper": paper, "cpu": cpu}
PROGRAM = "python -m baselines.sgd"


class SGD:
    """Online gradient descent as a learner: all episodes of a batch at once.

    Every episode has parameters of its own, stacked along the first axis: gradients and updates
    act on each separately. On a CPU an episode's logits are the same bits in every batch.

    Args:
        config: optimizer, lr, weight_decay and hidden; seed names the initial parameters,
            U(−1/√fan_in, 1/√fan_in), which all episodes share.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        self.config, self.num_classes = config, num_classes
        widths = [num_features, *([config.hidden] if config.hidden else []), num_classes]
        self.initial: dict[str, Tensor] = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            for kind, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
                name = f"{i}.{kind}"
                self.initial[name] = _uniform(name, config.seed, shape, fan_in**-0.5)

    @property
    def state_size(self) -> int:
        """Numbers carried from step to step: parameters, and Adam's two moments of each."""
        count = sum(values.numel() for values in self.initial.values())
        return count * (1 if self.config.optimizer == "sgd" else 3)

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Logits of step t from parameters trained on the examples before t."""
        if x.device.type != "cpu":
            return self._train(x, prev_y)
        numbers = sum(values.numel() for values in self.initial.values())
        size = min(max(PART_NUMBERS // numbers, MIN_PART), MAX_PART)
        extra = -len(x) % size  # all parts of one shape: one order of summation for all episodes
        x, prev_y = (
            functional.pad(x, (0, 0, 0, 0, 0, extra)),
            functional.pad(prev_y, (0, 0, 0, extra)),
        )
        parts = zip(torch.split(x, size), torch.split(prev_y, size), strict=True)
        return torch.cat([self._train(*part) for part in parts])[: len(x) - extra]

    def _train(
        self, x: Float[Tensor, "B T D"], prev_y: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Predict and learn step by step; the gradients of the cross entropy are written out."""
        parameters, layers = self._stack(len(x), x.device)
        optimizer = self._optimizer(parameters)
        targets = functional.one_hot(prev_y.clamp_min(0), self.num_classes).to(x.dtype)
        answers: list[Tensor] = []
        inputs: list[Tensor] = []  # of each layer, at the step before
        for t in range(x.shape[1]):
            if t > 0:  # the label of step t − 1 has arrived
                delta = torch.softmax(answers[-1], dim=1) - targets[:, t]
                for i in reversed(range(len(layers))):
                    weight, bias, weight_grad, bias_grad = layers[i]
                    torch.mul(delta[:, :, None], inputs[i][:, None, :], out=weight_grad)
                    bias_grad.copy_(delta)
                    if i > 0:
                        delta = torch.bmm(delta[:, None, :], weight)[:, 0] * (inputs[i] > 0)
                optimizer.step()
            inputs = [x[:, t]]
            for weight, bias, _, _ in layers:
                h = torch.baddbmm(bias[:, :, None], weight, inputs[-1][:, :, None])[:, :, 0]
                inputs.append(h.relu())
            answers.append(h)
        return torch.stack(answers, dim=1)

    def _stack(self, num: int, device: torch.device) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Parameters of all episodes as one tensor [B, P], so that one call updates them all.

        Returns:
            The tensor, and of each layer weight [B, out, in], bias [B, out] and their gradients,
            as views of it and of its gradient.
        """
        ends = np.cumsum([-(-v.numel() // ALIGN) * ALIGN for v in self.initial.values()])
        parameters = torch.zeros(num, int(ends[-1]), device=device)
        parameters.grad = torch.zeros_like(parameters)
        views: list[tuple[Tensor, Tensor]] = []
        for start, values in zip([0, *ends[:-1]], self.initial.values(), strict=True):
            value, gradient = (
                stacked[:, start : start + values.numel()].view(num, *values.shape)
                for stacked in (parameters, parameters.grad)
            )
            value.copy_(values)
            views.append((value, gradient))
        pairs = zip(views[0::2], views[1::2], strict=True)
        return parameters, [(weight[0], bias[0], weight[1], bias[1]) for weight, bias in pairs]

    def _optimizer(self, parameters: Tensor) -> torch.optim.Optimizer:
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "sgd": torch.optim.SGD,
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
        }
        lr, decay = self.config.lr, self.config.weight_decay
        return kinds[self.config.optimizer]([parameters], lr=lr, weight_decay=decay, fused=True)


def _uniform(name: str, seed: int, shape: tuple[int, ...], bound: float) -> Tensor:
    """U(−bound, bound), keyed by name and seed."""
    key = counter.stream_key("sgd init", name, seed)
    values = counter.uniforms(key, np.zeros(1, dtype=np.int64), int(np.prod(shape)))
    return torch.from_numpy((2 * values - 1) * bound).to(torch.float32).view(shape)


def run(config: Config) -> None:
    """Evaluate, or sweep; see the module."""
    env = config.meta_train
    spec = find_spec(env)
    learner = SGD(config, spec.num_features, spec.num_classes)
    entry = common.entry(
        config,
        name="sgd-sweep" if config.sweep else "sgd",
        title="SGD",
        inductive_bias="Backprop, SGD",
        code=f"{PROGRAM} --optimizer {config.optimizer} --lr {config.lr:g} "
        f"--weight-decay {config.weight_decay:g} --hidden {config.hidden}",
        state_size=learner.state_size,
    )
    # What needs data comes first: without them no folder is made.
    if config.sweep:
        device = str(common.resolve_device(config.device))
        made: Any = icl_bench.make(env, split="val", device=device, data_dir=config.data_dir)
        batch = made.unwrapped.episodes(range(config.sweep_episodes))
        with common.open_run(config, entry, PROGRAM) as folder:
            sweep(config, folder, batch)
    else:
        envs = common.envs_at_hand(config)
        with common.open_run(config, entry, PROGRAM) as folder:
            settings = dataclasses.asdict(common.portable(config))
            write_settings(folder.path / SETTINGS, "sgd", settings)  # seed names the weights
            common.evaluate_run(folder, learner, envs)


COLUMNS = ("optimizer", "hidden", "lr", "accuracy", "low", "high")


def sweep(
    config: Config, folder: common.RunFolder, batch: icl_bench.EpisodeBatch
) -> list[dict[str, str]]:
    """Score every setting of the grid; one row of ``sweep.csv`` each, kept when it is resumed.

    ``accuracy`` averages the last ten steps, for less noise, with its 95 % interval over tasks; a
    setting whose logits do not stay finite has accuracy 0.

    Returns:
        All rows, the best first.
    """
    path = folder.path / "sweep.csv"
    rows = read_rows(path)
    done = {tuple(row[name] for name in COLUMNS[:3]) for row in rows}
    folder.log.cut(
        lambda e: e["event"] != "setting" or tuple(str(e[name]) for name in COLUMNS[:3]) in done
    )
    grid = itertools.product(get_args(OptimizerName), config.sweep_hidden, config.sweep_rates)
    todo = [setting for setting in grid if tuple(map(str, setting)) not in done]
    for optimizer, hidden, lr in tqdm(todo, desc="sweep", unit="setting", disable=None):
        decay = config.sweep_weight_decay if optimizer == "adamw" else 0.0
        chosen = dataclasses.replace(
            config, optimizer=optimizer, hidden=hidden, lr=lr, weight_decay=decay
        )
        logits = SGD(chosen, batch.x.shape[-1], batch.num_classes)(batch.x, batch.prev_y)
        hits = (logits.argmax(dim=-1) == batch.y)[:, -10:].double().mean(dim=1)
        hits *= torch.isfinite(logits).all()
        found = task_interval(hits.cpu().numpy(), np.arange(len(hits)))
        values = (optimizer, hidden, lr, found.mean, found.low, found.high)
        folder.log.write("setting", **dict(zip(COLUMNS, values, strict=True)))
        rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
        write_rows(path, rows)
    rows.sort(key=lambda row: -float(row["accuracy"]))
    print(f"best of {len(rows)} settings, last ten steps, {len(batch.y)} validation tasks:")
    for row in rows[:10]:
        accuracy, low, high = (100 * float(row[name]) for name in COLUMNS[3:])
        name = f"{row['optimizer']:5}  lr {row['lr']:6}  hidden {row['hidden']:4}"
        print(f"  {name} {accuracy:5.1f} %  [{low:.1f}, {high:.1f}]")
    print(f"\n{path}")
    return rows


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows with the same columns as CSV; atomic."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(cli.main(run, PRESETS, PROGRAM, __doc__ or ""))
