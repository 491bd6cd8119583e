"""Prototypical network: equal to a loop in NumPy, causal, trainable, at once and step by step."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import icl_bench
from baselines import cli, protonet, train
from baselines.sequence import build_model
from icl_bench.evaluation.learner import LearnerError

DIGITS = "Digits-Proj8-v0"


def build(**settings) -> protonet.ProtoNet:
    config = protonet.Config(**{"env": DIGITS, "hidden": 16, "embedding": 8} | settings)
    model = build_model(protonet.METHOD, config).eval()
    with torch.no_grad():
        model.unseen.copy_(torch.linspace(-0.5, 0.5, config.embedding))
    return model


@pytest.fixture(scope="module")
def batch() -> icl_bench.EpisodeBatch:
    return icl_bench.make(DIGITS, split="unseen").unwrapped.episodes(range(4))


@pytest.mark.parametrize("hidden", [0, 16])
@torch.no_grad()
def test_equals_a_loop_in_numpy(batch, hidden):
    model = build(hidden=hidden)
    *first, weight, bias = (p.double().numpy() for p in model.embed.state_dict().values())
    found = model(batch.x, batch.prev_y).double().numpy()
    for episode in range(4):
        x = batch.x[episode].double().numpy()
        h = np.maximum(x @ first[0].T + first[1], 0) if hidden else x
        z = h @ weight.T + bias
        for t in range(100):
            for c in range(10):
                seen = [z[s] for s in range(t) if batch.y[episode, s] == c]
                prototype = np.mean(seen, axis=0) if seen else model.unseen.double().numpy()
                expected = -((z[t] - prototype) ** 2).sum()
                assert abs(found[episode, t, c] - expected) < 1e-4


@torch.no_grad()
def test_step_by_step_equals_one_pass(batch):
    model = build()
    state, answers = model.begin(4), []
    for t in range(100):
        logits, state = model.step(batch.x[:, t], batch.prev_y[:, t], state)
        answers.append(logits)
    whole = model(batch.x, batch.prev_y)
    torch.testing.assert_close(torch.stack(answers, dim=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("hidden", [0, 16])
def test_does_not_peek(hidden):
    icl_bench.check_learner(build(hidden=hidden), DIGITS)


class OfWholeEpisode(protonet.ProtoNet):
    """Prototypes of all examples of the episode."""

    def forward(self, x: Tensor, prev_y: Tensor) -> Tensor:
        _, state = self.steps(x, prev_y, self.begin(len(x)))
        means = state[1] / state[2].clamp_min(1)[..., None]
        return -(self.embed(x)[:, :, None] - means[:, None]).square().sum(dim=-1)


def test_peeking_would_be_refused():
    with pytest.raises(LearnerError):
        icl_bench.check_learner(OfWholeEpisode(protonet.Config(hidden=8), 64, 10).eval(), DIGITS)


def test_is_equivariant_to_the_order_of_classes(batch):
    model, order = build(), torch.from_numpy(np.random.default_rng(0).permutation(10))
    renamed = torch.where(batch.prev_y < 0, batch.prev_y, order[batch.prev_y.clamp_min(0)])
    with torch.no_grad():
        found, plain = model(batch.x, renamed), model(batch.x, batch.prev_y)
    torch.testing.assert_close(found[..., order], plain, atol=1e-4, rtol=1e-5)


def test_learns_one_task_by_heart():
    arguments = ["--preset", "cpu", "--env", DIGITS, "--device", "cpu", "--num-tasks", "1"]
    size = ["--hidden", "64", "--embedding", "16", "--steps", "150", "--batch-size", "8"]
    config = cli.parse(protonet.PRESETS, "", "", [*arguments, *size, "--lr", "1e-2"])
    model = build_model(protonet.METHOD, config)
    source = train.environment(config, torch.device("cpu"))
    batch = source.episodes(range(10_000, 10_032))

    @torch.no_grad()
    def loss() -> float:
        logits = model.eval()(batch.x, batch.prev_y)[:, 50:].flatten(0, 1)
        return float(functional.cross_entropy(logits, batch.y[:, 50:].flatten()))

    before = loss()
    train.train(config, model, source, None)
    assert loss() < 0.2 < before


def test_sizes_counted_by_hand():
    model = build()
    assert sum(p.numel() for p in model.parameters()) == 65 * 16 + 17 * 8 + 8
    assert model.state_size(100) == 10 * 8 + 10 + 8


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--hidden", "-1"], "--hidden must be 0 or more"),
        (["--embedding", "0"], "--embedding must be 1 or more"),
    ],
)
def test_bad_settings_are_refused(arguments, reason, capsys):
    presets, program = protonet.PRESETS, protonet.METHOD.program
    assert cli.main(lambda _: None, presets, program, "", ["--env", DIGITS, *arguments]) == 2
    assert reason in capsys.readouterr().err
