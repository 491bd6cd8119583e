"""Stacked members: each is its single run, to rounding, and wrong stacks are found."""

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from ensembles import CPU, built, configs
from torch import Tensor, nn
from torch.nn import functional

import icl_bench
from baselines import checkpoint, common, optim, sequence, train
from baselines.experiments import execute
from baselines.experiments.ensemble import STACKED
from baselines.experiments.stack import Member, Stack, train_together


@pytest.fixture(autouse=True)
def loops_of_vmap_are_errors() -> Iterator[None]:
    """Warnings are errors, also that of an operation without a rule, which vmap would loop over."""
    torch._C._debug_only_display_vmap_fallback_warnings(True)
    yield
    torch._C._debug_only_display_vmap_fallback_warnings(False)


class Doubled:
    """An environment whose inputs are float64."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def episodes(self, ids: Sequence[int], repeat: float) -> icl_bench.EpisodeBatch:
        batch = self.source.episodes(ids, repeat=repeat)
        return dataclasses.replace(batch, x=batch.x.double())


def alone(config: Any, model: sequence.SequenceModel, source: Any) -> None:
    """The outer loop in so many words."""
    names = ("lr", "eps", "momentum", "weight_decay")
    adjust = {name: getattr(config, name) for name in names}
    optimizer = optim.make_optimizer(config.optimizer, model, **adjust)
    for step in range(config.steps):
        factor = optim.rate_factor(step, config.steps, config.warmup, config.decay)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        ids = range(step * config.batch_size, (step + 1) * config.batch_size)
        batch = source.episodes(ids, repeat=config.repeat_share(step))
        logits = model(batch.x, batch.prev_y)
        functional.cross_entropy(logits.flatten(0, 1), batch.y.flatten()).backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()


def difference(one: nn.Module, other: nn.Module) -> float:
    """The largest of all parameters.

    But for the biases of keys: they move no softmax, so that their gradient is nothing but
    rounding, whose sign an optimizer may follow.
    """
    found = 0.0
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        apart = (p - q).abs().detach()
        if name.endswith("qkv.bias"):
            queries, _, values = apart.chunk(3)
            apart = torch.cat([queries, values])
        found = max(found, float(apart.max()))
    return found


def differences_in_float64(baseline: str, optimizer: str, **changes: Any) -> list[float]:
    """Of each member of an ensemble and the same trained alone."""
    members, singles = [], []
    for config in configs(baseline, optimizer=optimizer, **changes):
        source = Doubled(train.environment(config, CPU))
        member = Member(config)
        member.begin(built(baseline, config).double(), source)
        members.append(member)
        single = built(baseline, config).double()
        alone(config, single, source)
        singles.append(single)
    begun = [built(baseline, m.config).double() for m in members]
    train_together(members)
    assert all(member.error is None for member in members)
    assert all(difference(m.model, b) > 5e-4 for m, b in zip(members, begun, strict=True))
    return [difference(m.model, s) for m, s in zip(members, singles, strict=True)]


@pytest.mark.parametrize("baseline", STACKED)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sign"])
def test_a_member_is_its_single_run_in_float64(baseline: str, optimizer: str) -> None:
    assert max(differences_in_float64(baseline, optimizer)) < 1e-10


@pytest.mark.parametrize("changes", [{"accumulate": 3}, {"positions": "rotary"}], ids=str)
def test_a_member_is_its_single_run_whatever_the_settings(changes: dict[str, Any]) -> None:
    assert max(differences_in_float64("gpicl", "adam", **changes)) < 1e-10


# Wrong ensembles


def of_the_mean(patch: pytest.MonkeyPatch) -> None:
    right = Stack.backward

    def wrong(self: Stack, *batch: Any) -> tuple[Tensor, Tensor]:
        gradient, losses = right(self, *batch)
        return gradient / len(self.members), losses

    patch.setattr(Stack, "backward", wrong)


def shared_episodes(patch: pytest.MonkeyPatch) -> None:
    right = Stack.episodes

    def wrong(self: Stack, step: int) -> tuple[Tensor, ...]:
        return tuple(v[:1].expand_as(v) for v in right(self, step))

    patch.setattr(Stack, "episodes", wrong)


def after_init(change: Callable[[Stack], None]) -> Callable[[pytest.MonkeyPatch], None]:
    right = Stack.__init__

    def apply(patch: pytest.MonkeyPatch) -> None:
        def wrong(self: Stack, members: Sequence[Member]) -> None:
            right(self, members)
            change(self)

        patch.setattr(Stack, "__init__", wrong)

    return apply


@after_init
def shared_rate(stack: Stack) -> None:
    stack.rates = stack.rates[:, :1].expand_as(stack.rates)


@after_init
def shared_eps(stack: Stack) -> None:
    stack.eps = stack.eps[:1]


@after_init
def shared_momentum(stack: Stack) -> None:
    stack.momentum = stack.momentum[:1]


@after_init
def shared_weights(stack: Stack) -> None:
    with torch.no_grad():
        stack.theta.copy_(stack.theta[:1].expand_as(stack.theta))


@after_init
def decay_of_all(stack: Stack) -> None:
    assert stack.decay is not None
    stack.decay = stack.decay.amax(dim=1, keepdim=True)


@after_init
def shared_decay(stack: Stack) -> None:
    assert stack.decay is not None
    stack.decay = stack.decay[:1]


@after_init
def joint_norm(stack: Stack) -> None:
    clip = stack.clip
    assert clip is not None
    right = type(stack).update

    def wrong(gradient: Tensor, step: int) -> None:
        joint = gradient.norm()
        stack.clip = clip * gradient.norm(dim=1, keepdim=True) / joint
        right(stack, gradient, step)

    stack.update = wrong  # type: ignore[method-assign]


def correction_of_the_next_step(patch: pytest.MonkeyPatch) -> None:
    right = Stack.update

    def wrong(self: Stack, gradient: Tensor, step: int) -> None:
        rates = self.rates
        self.rates = rates.roll(1, dims=0)  # so that the rate stays that of this step
        right(self, gradient, step + 1 if step + 1 < len(rates) else step)
        self.rates = rates

    patch.setattr(Stack, "update", wrong)


ADAM = (of_the_mean, shared_episodes, shared_rate, shared_eps, shared_weights)
WRONG = [
    *((wrong, "adam") for wrong in (*ADAM, joint_norm, correction_of_the_next_step)),
    *((wrong, "adamw") for wrong in (decay_of_all, shared_decay)),
    *((wrong, "sign") for wrong in (shared_momentum, shared_rate, shared_decay)),
]


@pytest.mark.parametrize(("wrong", "optimizer"), WRONG)
def test_wrong_ensembles_are_found(
    wrong: Callable[[pytest.MonkeyPatch], None], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch)
    assert max(differences_in_float64("mlp", optimizer)) > 1e-5


# Against the outer loop


def opened(config: Any, path: Path) -> common.RunFolder:
    path.mkdir(parents=True)
    return common.RunFolder(path, config, common.JsonlLog(path / "metrics.jsonl"), CPU)


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log that a run has again, by name."""
    found = {}
    for name, value in line.items():
        if name not in execute.NOT_METRICS:
            parts = value if isinstance(value, dict) else {"": value}
            found |= {f"{name}/{part}": number for part, number in parts.items()}
    return found


@pytest.mark.parametrize("baseline", STACKED)
@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}], ids=str)
def test_a_member_logs_and_ends_as_the_outer_loop_does(
    baseline: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    members = []
    for config in configs(baseline, **changes):
        member = Member(config, opened(config, tmp_path / "together" / str(len(members))))
        member.begin(built(baseline, config), train.environment(config, CPU))
        members.append(member)
    train_together(members)
    tolerance = 2e-3 if changes else 1e-5
    for number, member in enumerate(members):
        config = member.config
        folder = opened(config, tmp_path / "alone" / str(number))
        single = built(baseline, config)
        train.train(config, single, train.environment(config, CPU), folder)
        assert difference(member.model, single) < tolerance
        assert member.folder is not None
        lines, others = folder.log.read(), member.folder.log.read()
        about = [(line["event"], line["step"], line.get("on")) for line in lines]
        assert about == [(line["event"], line["step"], line.get("on")) for line in others]
        assert {kind for kind, _, _ in about} == {"train", "eval"}
        for line, other in zip(lines, others, strict=True):
            assert line.keys() == other.keys()
            if line["event"] == "train":
                assert numbers(other) == pytest.approx(
                    numbers(line), rel=0.1 if changes else 1e-3, abs=tolerance
                )
        one, two = checkpoint.load(folder.path), checkpoint.load(member.folder.path)
        assert one is not None
        assert two is not None
        assert one["settings"] == two["settings"]
        rates = [[g["lr"] for g in s["optimizer"]["param_groups"]] for s in (one, two)]
        assert rates[0] == rates[1]
        kept, other_kept = one["optimizer"]["state"], two["optimizer"]["state"]
        assert kept.keys() == other_kept.keys()
        for place, state in kept.items():
            assert state.keys() == other_kept[place].keys()
            assert state["step"] == other_kept[place]["step"] == config.steps


def test_initial_weights_and_episodes_are_the_bits_of_the_single_run() -> None:
    members = []
    for config in configs("gpicl"):
        members.append(Member(config))
        members[-1].begin(built("gpicl", config), train.environment(config, CPU))
    stack = Stack(members)
    for row, member in enumerate(members):
        weights = built("gpicl", member.config).state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in member.model.state_dict().items())
        for step in (0, 7):
            x, prev_y, y = (v[row] for v in stack.episodes(step))
            size, share = member.config.batch_size, member.config.repeat_share(step)
            batch = train.environment(member.config, CPU).episodes(
                range(step * size, (step + 1) * size), repeat=share
            )
            assert torch.equal(x, batch.x)
            assert torch.equal(y, batch.y)
            assert torch.equal(prev_y, batch.prev_y)


def test_members_of_one_stream_draw_their_episodes_once() -> None:
    drawn = []

    class Counted(Doubled):
        def episodes(self, ids: Sequence[int], repeat: float) -> icl_bench.EpisodeBatch:
            drawn.append(ids)
            return self.source.episodes(ids, repeat=repeat)

    config = configs("mlp")[0]
    source = Counted(train.environment(config, CPU))
    members = []
    for rate in (1e-3, 1e-2, 1e-1):
        members.append(Member(dataclasses.replace(config, lr=rate)))
        members[-1].begin(built("mlp", config), source)
    stack = Stack(members)
    x, _, _ = stack.episodes(3)
    assert len(drawn) == 1
    assert torch.equal(x[0], x[2])


@pytest.mark.slow
def test_a_compiled_ensemble_is_the_same() -> None:
    """In a process of its own: the tests' checks of shapes cannot be compiled."""
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_experiments_stack import differences_in_float64 as differences\n"
        "print(max(differences('mlp', 'adam', compile=True)))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 1e-10


def test_both_ways_of_the_benchmark_are_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("ensemble")
    ends = []
    for way in benchmark.WAYS.values():
        members = benchmark.begun("mlp", "cpu", 2)
        step = way(members)
        for number in range(5):
            step(number)
        ends.append([member.model for member in members])
    assert max(difference(one, other) for one, other in zip(*ends, strict=True)) < 1e-4
    assert difference(*ends[0]) > 1e-2
