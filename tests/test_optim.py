"""Optimizers against plain loops and PyTorch's own; schedules at their corners."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from baselines import optim
from baselines.train_config import TrainConfig

SETTINGS = {"lr": 1e-2, "eps": 1e-8, "momentum": 0.8, "weight_decay": 0.1}


class Net(nn.Module):
    """Matrices, vectors, a matrix of positions, and a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.position, self.weight, self.bias, self.scale = made(7, 5), made(5, 3), made(3), made(3)
        self.frozen = made(3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return ((x + self.position) @ self.weight + self.bias).tanh() * self.scale + self.frozen


def walk(net: Net, optimizer: torch.optim.Optimizer, steps: int = 30) -> list[list[Tensor]]:
    """Parameters after each of some steps on a noisy loss."""
    generator = torch.Generator().manual_seed(1)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 7, 5, generator=generator)).square().mean().backward()
        optimizer.step()
        path.append([p.detach().clone() for p in net.parameters()])
    return path


def gap(first: list[list[Tensor]], second: list[list[Tensor]]) -> float:
    return max(
        float((a - b).abs().max())
        for row, other in zip(first, second, strict=True)
        for a, b in zip(row, other, strict=True)
    )


def plain_sign(net: Net, decay_of_vectors: float = 0.0, nesterov: bool = False) -> list:
    """m ← β m + (1 − β) g, θ ← θ − lr (sign(m) + decay · θ), number by number."""
    lr, beta, decay = SETTINGS["lr"], SETTINGS["momentum"], SETTINGS["weight_decay"]
    generator = torch.Generator().manual_seed(1)
    trained = [p for p in net.parameters() if p.requires_grad]
    averages = [torch.zeros(p.shape, dtype=torch.float64) for p in trained]
    path = []
    for _ in range(30):
        net.zero_grad()
        net(torch.randn(4, 7, 5, generator=generator)).square().mean().backward()
        for p, m in zip(trained, averages, strict=True):
            assert p.grad is not None
            for i in range(p.numel()):
                g = float(p.grad.view(-1)[i])
                m.view(-1)[i] = beta * float(m.view(-1)[i]) + (1 - beta) * g
                seen = (1 - beta) * g + beta * m.view(-1)[i] if nesterov else m.view(-1)[i]
                old = float(p.detach().view(-1)[i])
                coefficient = decay if p.ndim >= 2 else decay_of_vectors
                move = math.copysign(1.0, float(seen)) + coefficient * old
                p.data.view(-1)[i] = old - lr * move
        path.append([p.detach().clone() for p in net.parameters()])
    return path


def test_sign_momentum_equals_a_plain_loop():
    net = Net()
    ours = walk(net, optim.make_optimizer("sign", net, **SETTINGS))
    assert gap(ours, plain_sign(Net())) < 1e-5
    # Another rule, and decay of vectors, would be noticed.
    assert gap(ours, plain_sign(Net(), nesterov=True)) > 1e-3
    assert gap(ours, plain_sign(Net(), decay_of_vectors=0.1)) > 1e-3


def test_sign_momentum_leaves_parameters_without_a_gradient_alone():
    weight, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = optim.SignMomentum([weight, other], lr=0.5, weight_decay=0.5)
    optimizer.step()  # no gradient at all
    weight.grad = torch.tensor([[2.0, -3e-9], [0.0, 1e9]])
    optimizer.step()
    expected = 0.75 - 0.5 * torch.tensor([[1.0, -1.0], [0.0, 1.0]])
    assert torch.equal(weight.detach(), expected)
    assert torch.equal(other.detach(), torch.ones(2, 2))
    assert list(optimizer.state) == [weight]


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_adam_is_pytorchs_with_decay_on_matrices_only(name, kind):
    net, theirs = Net(), Net()
    ours = walk(net, optim.make_optimizer(name, net, **SETTINGS))
    decay = SETTINGS["weight_decay"]
    groups = [
        {"params": [theirs.position, theirs.weight], "weight_decay": decay},
        {"params": [theirs.bias, theirs.scale], "weight_decay": 0.0},
    ]
    plain = {"lr": SETTINGS["lr"], "eps": SETTINGS["eps"], "foreach": False, "fused": False}
    assert gap(ours, walk(theirs, kind(groups, **plain))) < 1e-6
    # Decay on vectors, none on matrices, and the other kind of decay are noticed.
    everywhere, nowhere, swapped = Net(), Net(), Net()
    trained = [p for p in everywhere.parameters() if p.requires_grad]
    assert gap(ours, walk(everywhere, kind(trained, weight_decay=decay, **plain))) > 1e-4
    assert gap(ours, walk(nowhere, kind(nowhere.parameters(), weight_decay=0, **plain))) > 1e-4
    other = "adamw" if name == "adam" else "adam"
    assert gap(ours, walk(swapped, optim.make_optimizer(other, swapped, **SETTINGS))) > 1e-4


@pytest.mark.parametrize("name", ["adam", "adamw", "sign"])
def test_what_is_not_trained_has_no_place_in_an_optimizer(name):
    net = Net()
    optimizer = optim.make_optimizer(name, net, **SETTINGS)
    places = [p for group in optimizer.param_groups for p in group["params"]]
    assert sum(p is net.frozen for p in places) == 0
    assert len(places) == 4
    decays = {group["params"][0].ndim: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {2: 0.1, 1: 0.0}
    vector = nn.LayerNorm(3)
    assert len(optim.make_optimizer(name, vector, **SETTINGS).param_groups) == 1


@pytest.mark.parametrize("name", ["adam", "adamw", "sign"])
def test_an_optimizer_goes_on_from_its_state(name):
    net = Net()
    optimizer = optim.make_optimizer(name, net, **SETTINGS)
    walk(net, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    resumed, without_state = copy.deepcopy(net), copy.deepcopy(net)
    expected = walk(net, optimizer, 5)
    again = optim.make_optimizer(name, resumed, **SETTINGS)
    again.load_state_dict(state)
    assert gap(walk(resumed, again, 5), expected) == 0
    fresh = optim.make_optimizer(name, without_state, **SETTINGS)
    assert gap(walk(without_state, fresh, 5), expected) > 1e-4


def test_the_rate_at_its_corners():
    factor = optim.rate_factor
    # Warm-up: w + 1 of `warmup` parts, all of it at the last step of the warm-up.
    assert factor(0, 100, 10, "none") == pytest.approx(0.1)
    assert factor(8, 100, 10, "none") == pytest.approx(0.9)
    assert [factor(step, 100, 10, "none") for step in (9, 10, 99)] == [1.0, 1.0, 1.0]
    assert factor(0, 100, 1, "cosine") == 1.0
    # No warm-up: full rate from the first step.
    assert factor(0, 100, 0, "none") == factor(0, 100, 0, "cosine") == 1.0
    # Half a cosine from 1 at the end of the warm-up, through 1/2 in the middle, to almost 0.
    assert factor(10, 110, 10, "cosine") == 1.0
    assert factor(60, 110, 10, "cosine") == pytest.approx(0.5)
    assert factor(35, 110, 10, "cosine") == pytest.approx(0.5 + math.sqrt(2) / 4)
    assert factor(109, 110, 10, "cosine") == pytest.approx((1 - math.cos(math.pi / 100)) / 2)
    assert factor(110, 110, 10, "cosine") == pytest.approx(0.0)
    # A warm-up as long as the run, or longer.
    assert factor(9, 10, 10, "cosine") == 1.0
    assert factor(9, 10, 20, "cosine") == pytest.approx(0.5)
    assert factor(0, 1, 0, "cosine") == 1.0


def test_the_rate_rises_and_falls_once():
    rates = [optim.rate_factor(step, 200, 20, "cosine") for step in range(200)]
    assert all(a < b for a, b in itertools.pairwise(rates[:20]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert all(0 < rate <= 1 for rate in rates)


def test_the_share_of_repeated_points_is_annealed():
    config = TrainConfig(repeat=0.7, repeat_end=0.1, repeat_steps=(100, 300))
    shares = {0: 0.7, 99: 0.7, 100: 0.7, 150: 0.55, 200: 0.4, 300: 0.1, 301: 0.1, 10**6: 0.1}
    for step, share in shares.items():
        assert config.repeat_share(step) == pytest.approx(share), step
    never = dataclasses.replace(config, repeat_steps=(0, 0))
    assert [never.repeat_share(step) for step in (0, 1, 10**6)] == [0.7, 0.7, 0.7]
    at_once = dataclasses.replace(config, repeat_steps=(50, 50))
    assert [at_once.repeat_share(step) for step in (49, 50, 51)] == pytest.approx([0.7, 0.7, 0.1])
    rising = dataclasses.replace(config, repeat=0.0, repeat_end=1.0, repeat_steps=(0, 4))
    assert [rising.repeat_share(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_norms_are_by_layer_or_block():
    named = {
        "position": torch.tensor([3.0, 4.0]),
        "embed.weight": torch.full((2, 2), 2.0),
        "embed.bias": torch.full((3,), 1.0).double() * 3**0.5,
        "blocks.0.qkv.weight": torch.ones(2, 2),
        "blocks.0.mlp_in.weight": torch.ones(5),
        "blocks.1.qkv.weight": torch.zeros(2),
    }
    found = optim.norms(named.items())
    expected = {"position": 5.0, "embed": 5.0, "blocks.0": 3.0, "blocks.1": 0.0}
    assert found == pytest.approx(expected)
    assert optim.norms([]) == {}


# Muon


class Layers(nn.Module):
    """A model with the names that Muon tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)


def muon(module: nn.Module, **changes) -> optim.Together:
    settings = {"lr": 0.02, "eps": 1e-8, "momentum": 0.9, "weight_decay": 0.1} | changes
    made = optim.make_optimizer("muon", module, **settings)
    assert isinstance(made, optim.Together)
    return made


def test_muon_is_for_hidden_matrices_alone():
    module = Layers()
    hidden, other = muon(module).parts
    assert isinstance(hidden, torch.optim.Muon)
    assert isinstance(other, torch.optim.AdamW)
    in_hidden = {id(p) for group in hidden.param_groups for p in group["params"]}
    assert in_hidden == {id(block.weight) for block in module.blocks}
    in_other = [id(p) for group in other.param_groups for p in group["params"]]
    assert len(in_other) == len(set(in_other)) == 6
    assert in_hidden.isdisjoint(in_other)


def test_a_step_of_muon_is_orthogonal_and_as_long_as_one_of_adam():
    """All singular values alike; a root mean square of 0.2 times the rate (Liu et al. 2025)."""
    module = Layers()
    made = muon(module, weight_decay=0.0)
    before = module.blocks[0].weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    made.step()
    move = module.blocks[0].weight.detach() - before
    values = torch.linalg.svdvals(move)
    assert float(values.max() / values.min()) < 2  # five Newton–Schulz steps, not an exact one
    assert float(move.square().mean().sqrt()) == pytest.approx(0.2 * 0.02, rel=0.3)


def test_muon_goes_on_where_its_state_was_taken():
    """Two steps, or one, a round trip of the state, and another: the same bits."""

    def gradients(module: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    whole, resumed = Layers(), Layers()
    resumed.load_state_dict(whole.state_dict())
    first, second = muon(whole), muon(resumed)
    for made, module in ((first, whole), (second, resumed)):
        gradients(module, 1)
        made.step()
    third = muon(resumed)
    third.load_state_dict(second.state_dict())
    forgetful = Layers()
    forgetful.load_state_dict(resumed.state_dict())
    for made, module in ((first, whole), (third, resumed), (muon(forgetful), forgetful)):
        gradients(module, 2)
        made.step()
    weights = [m.blocks[0].weight.detach() for m in (whole, resumed, forgetful)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "sign"])
def test_norms_of_adams_averages(name: optim.OptimizerName) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    optimizer = optim.make_optimizer(name, net, lr=0.0, eps=1e-8, momentum=0.9, weight_decay=0.0)
    gradients = [
        torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(k))
        for k, p in enumerate(net.parameters())
    ]
    assert optim.adam_norms(optimizer, net.named_parameters()) == {}  # before the first step
    for _ in range(2):
        for p, g in zip(net.parameters(), gradients, strict=True):
            p.grad = g.clone()
        optimizer.step()
    found = optim.adam_norms(optimizer, net.named_parameters())
    if name == "sign":
        assert found == {}
        return
    # Two equal gradients: m = (1 − β₁²) g and v = (1 − β₂²) g².
    kept = [g for g in gradients if name != "muon" or g.ndim == 1]
    for group, (first, second) in {"0": (0, 1), "1": (2, 3)}.items():
        parts = [gradients[k] for k in (first, second) if any(gradients[k] is g for g in kept)]
        size = float(torch.cat([g.flatten() for g in parts]).norm())
        assert found["adam_m_norm"][group] == pytest.approx((1 - 0.9**2) * size, rel=1e-6)
        assert found["adam_v_norm"][group] == pytest.approx((1 - 0.999**2) ** 0.5 * size, rel=1e-6)
