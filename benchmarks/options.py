"""Speed of scoring options with shared keys and values against a plain loop.

    python benchmarks/options.py [--out benchmarks/results/options-cpu.json]

50 queries with 4 options each after the same 16 demonstrations, on a CPU: a GPT-2 of 4 layers and
width 256 with random weights, whose vocabulary is bytes, so that its last layer costs next to
nothing. The plain loop is one forward pass for each of the 200 sequences. Ratios within one run,
medians of alternating steps, and the largest difference between the scores of the two ways.
"""

import argparse
import json
import platform
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import milliseconds
from torch import nn

from icl_bench.data.torchvision_compat import import_torchvision
from icl_bench.episodes import TextExample
from icl_bench.evaluation.options import score_options
from icl_bench.tasks import prompts

QUERIES, DEMONSTRATIONS = 50, 16
VIEWS: tuple[prompts.View, ...] = ("direct", "channel")
OPTIONS = ("negative", "neutral", "positive", "both of them")
WORDS = ("the", "film", "was", "long", "and", "actors", "never", "better", "than", "this")


def build() -> nn.Module:
    """The model."""
    import_torchvision()  # transformers cannot import a broken one
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=256, n_layer=4, n_embd=256, n_head=4, bos_token_id=None, eos_token_id=None
    )
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


def make_prompts(view: prompts.View) -> list[prompts.Prompt]:
    """Demonstrations of 35 to 60 bytes each, so that nothing is cut."""
    rng = random.Random(0)
    examples = [
        TextExample(" ".join(rng.choices(WORDS, k=rng.randint(5, 8))), rng.choice(OPTIONS))
        for _ in range(DEMONSTRATIONS + QUERIES)
    ]
    prompt_format = prompts.PromptFormat(view)
    shown = prompts.encode_demonstrations(
        prompt_format, prompts.byte_tokenizer, examples[:DEMONSTRATIONS]
    )
    return [
        prompts.option_prompt(prompt_format, prompts.byte_tokenizer, shown, query)
        for query in examples[DEMONSTRATIONS:]
    ]


@torch.inference_mode()
def looped(model: nn.Module, items: list[prompts.Prompt]) -> list[np.ndarray]:
    """One sequence after the other."""
    scores = []
    for prompt in items:
        row = []
        for candidate, scored in enumerate(prompt.scored):
            ids = torch.tensor([prompt.sequence(candidate)[0]])
            logits = model(input_ids=ids, use_cache=False).logits[0, -len(scored) - 1 : -1]
            row.append(nn.functional.cross_entropy(logits, ids[0, -len(scored) :]).item())
        scores.append(np.array(row))
    return scores


def measure(view: prompts.View, repetitions: int) -> dict[str, Any]:
    """Times of both ways, their ratio, and the largest difference between their scores."""
    model, items = build(), make_prompts(view)
    scores: dict[str, list[np.ndarray]] = {}

    def ours(_: int) -> None:
        scores["ours"] = score_options(model, items)

    def plain(_: int) -> None:
        scores["plain loop"] = looped(model, items)

    times = milliseconds({"ours": ours, "plain loop": plain}, repetitions)
    pairs = zip(*scores.values(), strict=True)
    lengths = [len(prompt.sequence()[0]) for prompt in items]
    return {
        "tokens": [min(lengths), max(lengths)],
        "ms": times,
        "ratio": times["plain loop"] / times["ours"],
        "largest difference of scores": max(float(np.abs(a - b).max()) for a, b in pairs),
    }


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=VIEWS)
    args = parser.parse_args()
    results: dict[str, Any] = {
        "queries": QUERIES,
        "demonstrations": DEMONSTRATIONS,
        "options": len(OPTIONS),
        "device": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(
        f"ms for {QUERIES} queries x {len(OPTIONS)} options after {DEMONSTRATIONS} demonstrations"
    )
    for view in args.views:
        found = results[view] = measure(view, args.repetitions)
        print(
            f"  {view:8} ours {found['ms']['ours']:8.0f}, plain loop "
            f"{found['ms']['plain loop']:8.0f}, ratio {found['ratio']:.1f}; prompts of "
            f"{found['tokens'][0]} to {found['tokens'][1]} tokens; scores differ by at most "
            f"{found['largest difference of scores']:.1e}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
