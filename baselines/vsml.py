"""VSML: a grid of tiny LSTMs that share their weights and are meta-trained to learn in context.

The row "VSML" of Table 2 of GPICL (Kirsch et al. 2022, appendix A.3, A.4), from Kirsch &
Schmidhuber 2021. Between A inputs and B outputs every weight of a dense layer is an LSTM(a, b) of
16 units; all share one set of parameters, so that only their states can hold what is learned.
Forward messages are averaged over inputs, backward messages over outputs: the learner is
equivariant to permutations of both.

    python -m baselines.vsml --env MNIST-Proj-v0 --preset paper        # one GPU
    python -m baselines.vsml --env MNIST-Proj8-v0 --preset cpu         # a laptop

At step t the first layer receives x_t (forward message, channel 0). The last layer receives, of
step t − 1, the error softmax − one-hot (backward message, channel 0) and the one-hot label
(channel 1); zeros at step 1. The backward message of any other layer reaches the one below at the
next step. Micro-ticks repeat a layer's tick while its incoming messages are held fixed. The logit
of class b is channel 1 of the averaged forward message through tanh(z / 100) · 100.

Differs from the paper: GPICL's "self-messages of size 8" are described nowhere. Our reading:
LSTM(a, b) receives a message from its own output at the tick before, and the averaged backward
message of its own layer to input a from the step before, which would be lost below the first layer.
GPICL does not say whether error, label or both are fed; ours: both (``--feedback``). The initial
cells are redrawn every episode while training; an evaluation refuses randomness, so there one
draw, kept with the weights, serves all episodes. Trained by backpropagation as in GPICL, not by
evolution as in the released code. Whether messages are normalised (here not) and the optimizer's
settings are not stated. Labels of repeated points can be guessed from their frequency alone, and
VSML did no more in 320 steps: no curriculum. The learning rate is larger than elsewhere, as input
gates begin nearly closed.
"""

import dataclasses
import itertools
import sys
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from baselines import common, train
from baselines.sequence import Method, SequenceModel, truncated_normal
from baselines.train_config import TrainConfig
from icl_bench.episodes import one_hot_labels
from icl_bench.tasks import counter


@dataclasses.dataclass(frozen=True)
class Config(TrainConfig):
    """VSML."""

    preset: Literal["paper", "gpu", "cpu"] = "paper"
    """paper: as in Table 2. gpu: the same, unbounded tasks. cpu: 8×8 pixels."""
    batch_size: int = 8  # Kirsch et al. 2022, A.4
    """Episodes (tasks) per outer step, over all processes."""
    compile: bool | None = False
    """torch.compile; it would unroll every tick of an episode."""
    layers: int = 1
    """Layers of LSTMs."""
    neurons: int = 32
    """Outputs of every layer but the last."""
    hidden: int = 16  # Kirsch et al. 2022, A.4
    """Units of one LSTM."""
    messages: int = 8  # Kirsch et al. 2022, A.4
    """Size of a message."""
    micro_ticks: int = 2  # Kirsch et al. 2022, A.4
    """Ticks of a layer per step."""
    self_messages: bool = True
    """Messages of an LSTM to itself, and of a layer's inputs to the layer itself."""
    feedback: Literal["error", "label", "both"] = "both"
    """What of the previous step the outputs receive."""
    layer_norm: bool = False
    """Normalise forward and backward messages before the averaging."""

    def check(self) -> None:
        """Check the values; ``cli.main`` does so."""
        super().check()
        for name in ("layers", "neurons", "micro_ticks"):
            common.require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("hidden", "messages"):
            common.require(getattr(self, name) >= 2, name, getattr(self, name), "2 or more")


def paper() -> Config:
    """Table 2: task batch 8, 2^25 tasks, 90 % biased permutations (Kirsch et al. 2022, A.4)."""
    return Config()


def gpu() -> Config:
    """The paper's model with unbounded tasks and uniform permutations, at a larger rate."""
    return Config(
        preset="gpu",
        num_tasks=None,
        bias=0.0,
        steps=20_000,
        lr=1e-2,
        warmup=100,
        decay="cosine",
        clip=1.0,
    )


def cpu() -> Config:
    """The paper's model at 8×8 pixels."""
    return Config(
        preset="cpu",
        env="MNIST-Proj8-v0",
        num_tasks=None,
        bias=0.0,
        steps=600,
        lr=2e-2,
        warmup=20,
        decay="cosine",
        clip=0.1,
        eval_every=100,
        checkpoint_every=100,
    )


PRESETS = {"paper": paper, "gpu": gpu, "cpu": cpu}

# Of every layer: hidden units and cells of LSTM(a, b), and the backward message to input a.
# Numbers of one LSTM or message come first and inputs last, so that the gates of all LSTMs are
# long contiguous rows: [H, N, B, A], [H, N, B, A], [M, N, A] with N episodes.
Layer = tuple[Tensor, Tensor, Tensor]
State = tuple[list[Layer], Tensor]  # layers; logits of the step before [N, C]


class Ticks(torch.autograd.Function):
    """Ticks of all LSTMs of a layer with incoming messages held fixed.

    Gates i, g, f, o in this order: c ← σ(f) c + σ(i) tanh(g), h ← σ(o) tanh(c). Their inputs are
    recurrent · h + of_input + of_output. The gradient is written out, for fewer temporaries.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        of_input: Float[Tensor, "G N A"],
        of_output: Float[Tensor, "G N B"],
        recurrent: Float[Tensor, "G H"],
        h: Float[Tensor, "H N B A"],
        c: Float[Tensor, "H N B A"],
        ticks: int,
    ) -> tuple[Float[Tensor, "H N B A"], Float[Tensor, "H N B A"]]:
        """Hidden units and cells after the ticks."""
        shape, units = h.shape, len(h)
        fixed = (of_input[:, :, None] + of_output[..., None]).view(4 * units, -1)
        h, c = h.reshape(units, -1), c.reshape(units, -1)
        kept = []
        for _ in range(ticks):
            gates = torch.addmm(fixed, recurrent, h)
            i, g, f, o = gates.chunk(4)
            i.sigmoid_()
            g.copy_(tanh(g))
            gates[2 * units :].sigmoid_()
            after = (f * c).addcmul_(i, g)
            squashed = tanh(after)
            kept += [h, c, gates, squashed]
            h, c = o * squashed, after
        ctx.save_for_backward(recurrent, *kept)
        ctx.shape = shape
        return h.view(shape), c.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors, tick by tick from the last."""
        recurrent, *kept = ctx.saved_tensors
        units, episodes, outputs, inputs = ctx.shape
        grad_h, grad_c = grad_h.reshape(units, -1), grad_c.reshape(units, -1)
        grad_recurrent = torch.zeros_like(recurrent)
        grad_fixed = None
        for tick in reversed(range(0, len(kept), 4)):
            h, c, gates, squashed = kept[tick : tick + 4]
            i, g, f, o = gates.chunk(4)
            grad = torch.empty_like(gates)
            grad_i, grad_g, grad_f, grad_o = grad.chunk(4)
            grad_c = grad_c + torch.ops.aten.tanh_backward(grad_h * o, squashed)
            sigmoid_backward(grad_h.mul(squashed), o, grad_input=grad_o)
            sigmoid_backward(grad_c * g, i, grad_input=grad_i)
            tanh_backward(grad_c * i, g, grad_input=grad_g)
            sigmoid_backward(grad_c * c, f, grad_input=grad_f)
            grad_c.mul_(f)
            grad_recurrent.addmm_(grad, h.T)
            grad_h = recurrent.T @ grad
            grad_fixed = grad if grad_fixed is None else grad_fixed.add_(grad)
        grad_fixed = grad_fixed.view(4 * units, episodes, outputs, inputs)
        of_input, of_output = grad_fixed.sum(dim=2), grad_fixed.sum(dim=3)
        grad_h, grad_c = grad_h.view(ctx.shape), grad_c.view(ctx.shape)
        return of_input, of_output, grad_recurrent, grad_h, grad_c, None


def tanh(values: Tensor) -> Tensor:
    """Hyperbolic tangent; on a CPU by the sigmoid, nine times as fast there in PyTorch."""
    return torch.sigmoid(2 * values).mul_(2).sub_(1) if values.is_cpu else values.tanh()


sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input


class VSML(SequenceModel):
    """One or more layers of LSTMs with shared parameters as a learner.

    Args:
        config: layers, neurons, hidden, messages, micro_ticks, self_messages, feedback,
            layer_norm; seed names the cells that episodes of meta-training begin with.
        num_features: D.
        num_classes: C.
    """

    def __init__(self, config: Config, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.sizes = [num_features, *[config.neurons] * (config.layers - 1), num_classes]
        size, units = config.messages, config.hidden
        received = (4 if config.self_messages else 2) * size
        self.gates = nn.Linear(received + units, 4 * units)
        self.forward_head = nn.Linear(units, size)
        self.backward_head = nn.Linear(units, size)
        self.self_head = nn.Linear(units, size) if config.self_messages else None
        self.forward_norm = nn.LayerNorm(size) if config.layer_norm else None
        self.backward_norm = nn.LayerNorm(size) if config.layer_norm else None
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                truncated_normal(parameter, parameter.shape[1])
        # Forget gates begin open and input gates closed (released code of the paper).
        offset = torch.tensor([-5.0, 0.0, 5.0, 0.0]).repeat_interleave(units)
        self.register_buffer("offset", offset, persistent=False)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(self.sizes)):
            cells = torch.empty(units // 2, outputs, inputs)
            self.register_buffer(f"cells_{layer}", truncated_normal(cells, inputs))

    def begin(self, batch_size: int) -> State:
        """Hidden units and messages of zero; initial cells."""
        layers = []
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(self.sizes)):
            half = self._cells(layer, batch_size)
            h = half.new_zeros(self.config.hidden, batch_size, outputs, inputs)
            c = torch.cat([half, h[len(half) :]])
            layers.append((h, c, half.new_zeros(self.config.messages, batch_size, inputs)))
        return layers, half.new_zeros(batch_size, outputs)

    def kept_by_step(self, batch_size: int) -> int:
        """7 numbers of every hidden unit and tick; see ``Ticks``."""
        lstms = sum(a * b for a, b in itertools.pairwise(self.sizes))
        return 7 * self.config.hidden * lstms * self.config.micro_ticks * batch_size

    def state_size(self, episode_length: int) -> int:
        """Units and cells of all LSTMs, backward messages, and logits for the next error."""
        size = self.sizes[-1] if self.config.feedback != "label" else 0
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(self.sizes)):
            size += 2 * self.config.hidden * inputs * outputs
            if self.config.self_messages or layer > 0:
                size += self.config.messages * inputs
        return size

    def _cells(self, layer: int, batch_size: int) -> Float[Tensor, "H N B A"]:
        """First half of the initial cells: redrawn for an outer step, or the kept ones."""
        kept = self.get_buffer(f"cells_{layer}")[:, None].expand(-1, batch_size, -1, -1)
        if self.outer_step is None:
            return kept
        key = counter.stream_key("vsml cells", self.config.seed, self.outer_step, layer)
        generator = torch.Generator(kept.device).manual_seed(key)
        # Of the whole batch, so that its parts and processes see what one pass would.
        first, whole = self.first_episode, max(self.config.batch_size, batch_size)
        drawn = kept.new_empty(whole, len(kept), *kept.shape[2:])
        truncated_normal(drawn, kept.shape[-1], generator)
        return drawn[first : first + batch_size].transpose(0, 1)

    def steps(
        self, x: Float[Tensor, "N S D"], prev_y: Int[Tensor, "N S"], state: State
    ) -> tuple[Float[Tensor, "N S C"], State]:
        """Logits of the next S steps, and the state after them."""
        answers = []
        # The states are the weights that are learned: 32 bits, also under autocast.
        with torch.autocast(x.device.type, enabled=False):
            weights = self._weights()
            labels = one_hot_labels(prev_y, self.sizes[-1])
            for t in range(x.shape[1]):
                state = self._step(x[:, t], labels[:, t], state, weights)
                answers.append(state[1])
        return torch.stack(answers, dim=1), state

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the gates: weights of messages to inputs and to outputs, of h, and the bias.

        A message to itself is linear in h, so it is a part of what h does at the next tick.
        """
        size = self.config.messages
        weight, bias = self.gates.weight, self.gates.bias + self.offset
        to_output, to_input = weight[:, :size], weight[:, size : 2 * size]
        recurrent = weight[:, -self.config.hidden :]
        if self.self_head is not None:
            to_input = weight[:, size : 3 * size]
            to_itself = weight[:, 3 * size : 4 * size]
            recurrent = recurrent + to_itself @ self.self_head.weight
            bias = bias + to_itself @ self.self_head.bias
        return to_input, to_output, recurrent, bias

    def _step(
        self,
        x: Float[Tensor, "N D"],
        labels: Float[Tensor, "N C"],
        state: State,
        weights: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> State:
        (layers, logits), size = state, self.config.messages
        to_input, to_output, recurrent, bias = weights
        known = labels.sum(dim=-1, keepdim=True)  # 0 at the first step
        error = (logits.softmax(dim=-1) - labels) * known
        fed = [
            error if self.config.feedback != "label" else torch.zeros_like(error),
            labels if self.config.feedback != "error" else torch.zeros_like(labels),
        ]
        last = functional.pad(torch.stack(fed), (0, 0, 0, 0, 0, size - 2))
        upward = functional.pad(x[None], (0, 0, 0, 0, 0, size - 1))
        from_above = [downward for _, _, downward in layers[1:]] + [last]
        after = []
        for (h, c, own), downward in zip(layers, from_above, strict=True):
            received = torch.cat([upward, own]) if self.config.self_messages else upward
            h, c = Ticks.apply(
                torch.einsum("gm,mna->gna", to_input, received),
                torch.einsum("gm,mnb->gnb", to_output, downward) + bias[:, None, None],
                recurrent,
                h,
                c,
                self.config.micro_ticks,
            )
            upward = average(h, 3, self.forward_head, self.forward_norm)
            after.append((h, c, average(h, 2, self.backward_head, self.backward_norm)))
        return after, (upward[1] / 100).tanh() * 100


def average(
    h: Float[Tensor, "H N B A"], dim: int, head: nn.Linear, norm: nn.LayerNorm | None
) -> Float[Tensor, "M N X"]:
    """Messages of all LSTMs, averaged over inputs (dim 3) or outputs (dim 2)."""
    if norm is None:  # linear: average first
        return head(h.mean(dim).movedim(0, -1)).movedim(-1, 0)
    return norm(head(h.movedim(0, -1))).mean(dim - 1).movedim(-1, 0)


METHOD = Method("vsml", "VSML", "In-context, param sharing", VSML, PRESETS)

if __name__ == "__main__":
    sys.exit(train.main(METHOD, __doc__ or ""))
