"""GPICL's Transformer: against independent attention, step by step, causal, of the right size."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import Tensor, nn

import icl_bench
from baselines import cli, gpicl
from baselines.gpicl import GPICL, Config
from baselines.sequence import build_model

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "Digits-Proj8-v0"
POSITIONS = ("learned", "rotary")
D, C = 64, 10


def config(**settings) -> Config:
    small = {"env": DIGITS, "width": 16, "layers": 2, "heads": 2, "episode_length": 12}
    return Config(**small | settings)


def model(seed: int = 0, **settings) -> GPICL:
    """With weights large enough for every part to matter: the initial logits are almost 0."""
    built = build_model(gpicl.METHOD, config(seed=seed, **settings)).eval()
    assert isinstance(built, GPICL)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    return built


def batch(length: int = 12, ids=range(4)) -> icl_bench.EpisodeBatch:
    return icl_bench.make(DIGITS, split="unseen", episode_length=length).unwrapped.episodes(ids)


# Independent implementations


def norm(h: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = h - h.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def turned(v: np.ndarray) -> np.ndarray:
    """Pair (i, i + K/2) of step t as a complex number, times exp(i t rate). v: [T, K]."""
    half = v.shape[1] // 2
    steps = np.arange(len(v))[:, None]
    rates = 10_000.0 ** (-np.arange(half) / half)
    z = (v[:, :half] + 1j * v[:, half:]) * np.exp(1j * steps * rates)
    return np.concatenate([z.real, z.imag], axis=1)


def in_numpy(net: GPICL, x: Tensor, prev_y: Tensor, causal: bool = True) -> np.ndarray:
    """Logits of one episode in float64, one query, one head and one key at a time."""
    w = {name: p.detach().double().numpy() for name, p in net.named_parameters()}
    length, heads, width = len(x), net.config.heads, net.config.width
    size = width // heads
    labels = np.zeros((length, C))
    for t in range(length):
        if prev_y[t] >= 0:
            labels[t, int(prev_y[t])] = 1.0
    tokens = np.concatenate([x.double().numpy(), labels], axis=1)
    h = tokens @ w["embed.weight"].T + w["embed.bias"]
    if net.config.positions == "learned":
        h = h + w["position"][:length]
    for i in range(net.config.layers):
        b = {name.removeprefix(f"blocks.{i}."): v for name, v in w.items()}
        normed = norm(h, b["attention_norm.weight"], b["attention_norm.bias"])
        qkv = normed @ b["qkv.weight"].T + b["qkv.bias"]
        read = np.zeros((length, width))
        for head in range(heads):
            q, k, v = (
                qkv[:, part * width + head * size : part * width + (head + 1) * size]
                for part in range(3)
            )
            if net.config.positions == "rotary":
                q, k = turned(q), turned(k)
            for t in range(length):
                seen = t + 1 if causal else length
                scores = np.array([q[t] @ k[s] / size**0.5 for s in range(seen)])
                p = np.exp(scores - scores.max())
                p /= p.sum()
                read[t, head * size : (head + 1) * size] = p @ v[:seen]
        h = h + read @ b["attention_out.weight"].T + b["attention_out.bias"]
        hidden = norm(h, b["mlp_norm.weight"], b["mlp_norm.bias"]) @ b["mlp_in.weight"].T
        hidden = hidden + b["mlp_in.bias"]
        hidden = hidden * 0.5 * (1 + erf(hidden / 2**0.5))
        h = h + hidden @ b["mlp_out.weight"].T + b["mlp_out.bias"]
    return norm(h, w["norm.weight"], w["norm.bias"]) @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("positions", POSITIONS)
def test_equals_an_independent_transformer_in_float64(positions):
    net, episodes = model(positions=positions), batch()
    with torch.no_grad():
        logits = net.double()(episodes.x.double(), episodes.prev_y).numpy()
        single = net.float()(episodes.x, episodes.prev_y).numpy()
    for b in range(2):
        expected = in_numpy(net, episodes.x[b], episodes.prev_y[b])
        assert expected.std() > 0.3  # not the zeros of the initial head
        # Measured: 1e-8 in float64 (rotary angles are float32), 4e-7 in float32.
        np.testing.assert_allclose(logits[b], expected, atol=1e-5 * abs(expected).max())
        np.testing.assert_allclose(single[b], expected, atol=1e-5 * abs(expected).max())
        peeking = in_numpy(net, episodes.x[b], episodes.prev_y[b], causal=False)
        assert abs(peeking - expected).max() > 0.1
    other = "rotary" if positions == "learned" else "learned"
    swapped = model(positions=other)
    expected = in_numpy(swapped, episodes.x[0], episodes.prev_y[0])
    assert abs(logits[0] - expected).max() > 0.1


def test_attention_equals_pytorchs():
    block = model(width=32, heads=4).blocks[0]
    assert isinstance(block, gpicl.Block)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.qkv.weight)
        theirs.in_proj_bias.copy_(block.qkv.bias)
        theirs.out_proj.weight.copy_(block.attention_out.weight)
        theirs.out_proj.bias.copy_(block.attention_out.bias)
        block.mlp_out.weight.zero_()
        block.mlp_out.bias.zero_()
        h = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(0))
        normed = block.attention_norm(h)
        mask = nn.Transformer.generate_square_subsequent_mask(20)
        expected, _ = theirs(normed, normed, normed, attn_mask=mask, need_weights=False)
        without, _ = theirs(normed, normed, normed, need_weights=False)
        ours = block(h, None)[0] - h
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (ours - without).abs().max() > 0.1


# One pass, step by step, causal


@pytest.mark.parametrize("positions", POSITIONS)
def test_step_by_step_equals_one_pass(positions):
    net, episodes = model(positions=positions, episode_length=40), batch(40)
    with torch.no_grad():
        expected = net(episodes.x, episodes.prev_y)
        state = net.begin(len(episodes))
        logits = []
        for t in range(40):
            one, state = net.step(episodes.x[:, t], episodes.prev_y[:, t], state)
            logits.append(one)
    stepped = torch.stack(logits, dim=1)
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.3
    # Forgetting what was read would be noticed.
    with torch.no_grad():
        alone, _ = net.step(episodes.x[:, 39], episodes.prev_y[:, 39], net.begin(4))
    assert (alone - expected[:, 39]).abs().max() > 0.1


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_state_is_as_large_as_it_says(positions):
    net, episodes = model(positions=positions, layers=3, heads=4), batch()
    state = net.begin(4)
    for t in range(12):
        _, state = net.step(episodes.x[:, t], episodes.prev_y[:, t], state)
    steps, kept = state
    numbers = sum(keys.numel() + values.numel() for keys, values in kept)
    assert steps == 12
    assert net.state_size(12) * 4 == numbers == 2 * 16 * 3 * 12 * 4


@pytest.mark.parametrize("positions", POSITIONS)
def test_passes_the_check_of_learners(positions):
    net = model(positions=positions, episode_length=100)
    icl_bench.check_learner(net, DIGITS)


def test_a_transformer_that_peeks_is_refused(monkeypatch):
    net = model(episode_length=100)
    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        gpicl.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, attn_mask, is_causal: attention(q, k, v),
    )
    with pytest.raises(icl_bench.LearnerError, match="later"):
        icl_bench.check_learner(net, DIGITS)


# Positions


def test_rotary_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator).expand(1, 1, 60, 8) for _ in range(2))
    angles = gpicl.rotation_angles(0, 60, 8, torch.device("cpu"))
    scores = (gpicl.rotate(q, angles) @ gpicl.rotate(k, angles).transpose(-1, -2))[0, 0]
    for distance in (0, 1, 7, 31):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert (scores.diagonal(0)[0] - scores.diagonal(1)[0]).abs() > 0.01
    assert (scores.diagonal(1)[0] - scores.diagonal(-1)[0]).abs() > 0.01  # the sign, too
    torch.testing.assert_close(gpicl.rotate(q, angles).norm(dim=-1), q.norm(dim=-1))
    later = gpicl.rotation_angles(40, 60, 8, torch.device("cpu"))
    assert torch.equal(later, angles[40:])


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_rotary_positions_are_the_same_wherever_an_episode_begins(positions):
    """Two blocks of keys at steps 0 … 5 and at steps 6 … 11, each read alone."""
    net, episodes = model(positions=positions), batch(6)
    with torch.no_grad():
        first = net(episodes.x, episodes.prev_y)
        empty = net.begin(4)[1]
        state = (6, empty)  # nothing is kept of six steps that went by
        logits = []
        for t in range(6):
            one, state = net.step(episodes.x[:, t], episodes.prev_y[:, t], state)
            logits.append(one)
    gap = (torch.stack(logits, dim=1) - first).abs().max()
    assert (gap < 1e-4) == (positions == "rotary")


def test_an_episode_longer_than_the_learned_positions_is_a_clear_error():
    net = model()
    episodes = batch(13)
    wanted = r"positions for 12 steps, not 13: .*--episode-length 13, or with --positions rotary"
    with pytest.raises(ValueError, match=wanted):
        net(episodes.x, episodes.prev_y)
    state = net.begin(4)
    for t in range(12):
        _, state = net.step(episodes.x[:, t], episodes.prev_y[:, t], state)
    with pytest.raises(ValueError, match=wanted):
        net.step(episodes.x[:, 12], episodes.prev_y[:, 12], state)
    rotary = model(positions="rotary")
    assert rotary(episodes.x, episodes.prev_y).shape == (4, 13, C)


# Sizes, settings, initial weights


def test_the_papers_size_by_hand():
    paper = gpicl.paper()
    assert (paper.width, paper.layers, paper.heads) == (256, 4, 8)
    assert (paper.batch_size, paper.num_tasks, paper.bias, paper.repeat) == (128, 2**25, 0.9, 0.0)
    net = build_model(gpicl.METHOD, paper)
    embed = (3072 + 10) * 256 + 256
    attention = 256 * 768 + 768 + 256 * 256 + 256
    mlp = 256 * 1024 + 1024 + 1024 * 256 + 256
    norms = 2 * 2 * 256
    head = 256 * 10 + 10
    by_hand = embed + 100 * 256 + 4 * (attention + mlp + norms) + 2 * 256 + head
    assert sum(p.numel() for p in net.parameters()) == by_hand == 3_976_970
    assert net.state_size(100) == 2 * 256 * 4 * 100 == 204_800
    rotary = build_model(gpicl.METHOD, dataclasses.replace(paper, positions="rotary"))
    assert sum(p.numel() for p in rotary.parameters()) == by_hand - 100 * 256


def test_initial_weights():
    net = build_model(gpicl.METHOD, config(width=128, layers=4, heads=4))
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif p.ndim == 1:
            assert bool((p == 1).all())
        else:
            std = 0.02 / (
                8**0.5 if name.endswith(("attention_out.weight", "mlp_out.weight")) else 1
            )
            std = 74**-0.5 if name == "embed.weight" else std
            assert abs(float(p.detach().std()) / std - 1) < 5 / (2 * p.numel()) ** 0.5, name
            assert abs(float(p.detach().mean())) < 5 * std / p.numel() ** 0.5, name
    episodes = batch()
    with torch.no_grad():
        stream = net.embed(episodes.tokens())  # type: ignore[operator]
        assert 0.7 < float(stream.std()) < 1.3
        assert net(episodes.x, episodes.prev_y).abs().max() < 1.5  # near uniform


def test_the_seed_names_the_initial_weights_and_nothing_else():
    before = torch.get_rng_state()
    first, again, other = (build_model(gpicl.METHOD, config(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for (name, p), q, r in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(p, q)
        assert p.ndim == 1 or not torch.equal(p, r), name


def test_presets_are_valid_and_say_their_name():
    for name, preset in gpicl.PRESETS.items():
        assert preset().preset == name
        assert cli.parse(gpicl.PRESETS, "x", "y", ["--preset", name, "--device", "cpu"]) == (
            dataclasses.replace(preset(), device="cpu")
        )


def test_help_documents_every_setting(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.parse(gpicl.PRESETS, gpicl.METHOD.program, gpicl.__doc__ or "", ["--help"])
    assert exit_info.value.code == 0
    shown = " ".join(re.sub("[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
    assert "usage: python -m baselines.gpicl" in shown
    assert "Table 2 (Kirsch et al. 2022" in shown
    files = ("common.py", "train_config.py", "gpicl.py")
    documents = "".join((ROOT / "baselines" / name).read_text() for name in files)
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in shown, field.name
        pattern = rf'^    {field.name}: [^\n]*\n    """(.*?)"""$'
        found = re.findall(pattern, documents, re.MULTILINE | re.DOTALL)
        assert found, f"{field.name} has no docstring"
        assert any(" ".join(text.split()) in shown for text in found), field.name


# Learning


def test_can_learn_one_fixed_task_by_heart():
    """Sixteen episodes of one task: the loss goes from log 10 to almost nothing."""
    net = build_model(gpicl.METHOD, config(layers=1))
    source = icl_bench.make(DIGITS, num_tasks=1, episode_length=12).unwrapped
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    fixed = source.episodes(range(16))
    assert len(set(fixed.task_id.tolist())) == 1
    losses = []
    for _ in range(100):
        logits = net(fixed.x, fixed.prev_y)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), fixed.y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert abs(losses[0] - np.log(10)) < 0.2
    assert losses[-1] < 0.1


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_parts_of_an_episode_give_what_the_whole_gives(positions):
    """Several steps after others: causal among themselves, too."""
    config = gpicl.Config(width=16, layers=2, heads=2, episode_length=12, positions=positions)
    model = gpicl.GPICL(config, 5, 10).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 12, 5, generator=generator)
    prev_y = torch.randint(10, (3, 12), generator=generator)
    state, parts = model.begin(3), []
    for cut in (slice(0, 4), slice(4, 5), slice(5, 12)):
        logits, state = model.steps(x[:, cut], prev_y[:, cut], state)
        parts.append(logits)
    whole = model(x, prev_y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
