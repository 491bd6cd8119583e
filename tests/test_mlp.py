"""MLP: one example at a time, so it memorises its training tasks and knows nothing of others."""

import importlib

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import icl_bench
from baselines import cli, mlp, train
from baselines.sequence import build_model

DIGITS = "Digits-Proj8-v0"


def build(**settings) -> mlp.MLP:
    config = mlp.Config(**{"env": DIGITS, "device": "cpu", "width": 32} | settings)
    return build_model(mlp.METHOD, config)


@pytest.fixture(scope="module")
def batch() -> icl_bench.EpisodeBatch:
    return icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(4))


@torch.no_grad()
def test_equals_two_hidden_layers_in_numpy(batch):
    model = build()
    first, first_bias, second, second_bias, head, head_bias = (
        p.double().numpy() for p in model.state_dict().values()
    )
    h = np.maximum(batch.x.double().numpy() @ first.T + first_bias, 0)
    h = np.maximum(h @ second.T + second_bias, 0)
    expected = h @ head.T + head_bias
    np.testing.assert_allclose(model(batch.x, batch.prev_y), expected, atol=1e-5, rtol=0)


class RunningMean(mlp.MLP):
    """Looks at the examples so far."""

    def forward(self, x, prev_y):
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return super().forward(x - x.cumsum(dim=1) / count, prev_y)


class LastLabel(mlp.MLP):
    """Looks at the label of the example before."""

    def forward(self, x, prev_y):
        return super().forward(x, prev_y) + functional.one_hot(prev_y + 1, 11)[..., 1:]


def depends_on_the_past(model: mlp.MLP, batch: icl_bench.EpisodeBatch) -> bool:
    """Whether another order of an episode's examples changes any example's logits."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(batch.x.shape[1]))
    y = batch.y[:, order]
    shuffled = icl_bench.EpisodeBatch(batch.x[:, order], y, batch.task_id, batch.num_classes)
    with torch.no_grad():
        moved = model(batch.x, batch.prev_y)[:, order]
        return bool((model(shuffled.x, shuffled.prev_y) - moved).abs().max() > 1e-6)


def test_the_order_of_examples_changes_nothing(batch):
    assert not depends_on_the_past(build(), batch)
    for mutant in (RunningMean, LastLabel):
        assert depends_on_the_past(mutant(mlp.Config(width=32), 64, 10), batch)


@torch.no_grad()
def test_step_by_step_equals_one_pass(batch):
    model = build()
    expected = model(batch.x, batch.prev_y)
    state = model.begin(len(batch))
    for t in range(batch.x.shape[1]):
        logits, state = model.step(batch.x[:, t], batch.prev_y[:, t], state)
        torch.testing.assert_close(logits, expected[:, t], atol=1e-6, rtol=0)
    assert state is None
    assert model.state_size(100) == 0


def test_passes_the_check_of_learners():
    icl_bench.check_learner(build().eval(), DIGITS)


def test_parameters_counted_by_hand():
    for config, count in (
        (mlp.paper(), 3072 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
        (mlp.cpu(), 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
    ):
        model = build_model(mlp.METHOD, config)
        assert sum(p.numel() for p in model.parameters()) == count


def hits_by_task(model: mlp.MLP, batch: icl_bench.EpisodeBatch) -> Tensor:
    """Share of right answers of each episode [B]."""
    with torch.no_grad():
        logits = model(batch.x, batch.prev_y)
    return (logits.argmax(-1) == batch.y).double().mean(dim=1)


def test_memorises_one_task_and_is_at_chance_on_others():
    config = mlp.Config(
        env=DIGITS, device="cpu", num_tasks=1, width=64, batch_size=8, steps=100, lr=3e-3
    )
    kwargs = config.meta_train_kwargs()
    made = icl_bench.make(DIGITS, split="train", **kwargs).unwrapped
    seen = icl_bench.make(DIGITS, split="seen", **kwargs).unwrapped.episodes(range(8))
    # Of 16 episodes of a task, one: 400 tasks.
    unseen = icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(0, 16 * 400, 16))
    assert len(unseen.task_id.unique()) == 400
    model = build_model(mlp.METHOD, config)
    assert hits_by_task(model, seen).mean() < 0.3
    train.train(config, model, made, None)
    assert hits_by_task(model, made.episodes(range(10**6, 10**6 + 8))).mean() > 0.6
    assert hits_by_task(model, seen).mean() > 0.6  # other images of the same task
    # A permutation that the weights know nothing of: 1/10 on average, whatever they say.
    found = hits_by_task(model, unseen)
    assert found.std() > 0.01
    assert abs(found.mean() - 0.1) < 5 * found.std() / 400**0.5


def test_presets():
    assert mlp.Config() == mlp.paper()
    for name, preset in mlp.PRESETS.items():
        assert preset().preset == name
        assert preset().num_tasks is not None  # without, there is nothing to memorise
        preset().check()
    assert mlp.cpu().env == "MNIST-Proj8-v0"


def test_program_is_the_module():
    assert importlib.import_module(mlp.METHOD.program.split()[-1]) is mlp


def test_bad_width_is_one_clear_line(capsys):
    def run(config: mlp.Config) -> None:
        train.run(config, mlp.METHOD)

    assert cli.main(run, mlp.PRESETS, mlp.METHOD.program, "", ["--width", "0"]) == 2
    assert capsys.readouterr().err == "error: --width must be 1 or more, not 0\n"
