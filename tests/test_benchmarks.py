"""Benchmarks compare the same work: both ways of each give the same numbers."""

import importlib
import itertools
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@torch.no_grad()
def test_attention_written_out_is_the_fused_one() -> None:
    meta_train = importlib.import_module("meta_train")
    net = meta_train.model(64, "cpu")
    block = net.blocks[0]
    plain = meta_train.PlainBlock(net.config.width, net.config.heads)
    plain.load_state_dict(block.state_dict())
    h = torch.randn(3, 100, net.config.width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(h, None)[0], block(h, None)[0], atol=1e-5, rtol=0)


def test_the_loop_over_tasks_has_the_gradient_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    maml = importlib.import_module("maml")
    monkeypatch.setattr(maml, "TASKS", 3)
    model, (x, y) = maml.build(12, "sgd"), maml.episodes(12, 6)
    gradients = []
    for way in maml.WAYS.values():
        model.zero_grad()
        way(model, x, y).backward()
        gradients.append(model.initial[0].grad.clone())
    for one, other in itertools.pairwise(gradients):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    assert gradients[0].abs().max() > 1e-3
