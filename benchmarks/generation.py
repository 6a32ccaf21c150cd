"""Evaluating by generation: one record at a time without a cache, as published, against the stack.

    python benchmarks/generation.py [--records 100] [--repeats 3] [--beams 1 4]

LLM-Adapters' evaluation (arXiv:2304.01933) calls transformers' `generate` for each record by itself; with
`use_cache = False`, as its training leaves the model, a whole text runs through the model for each token.
Both sides have the same model (a random Llama), the same prompts and the same end; the texts must be equal.
Sides alternate, ratios are taken within a repeat. Seconds are of processor time, of all threads together,
which other programs on the machine disturb less than the time on the wall.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunestack.bases import load_base
from tunestack.bases.tiny import tiny_configs
from tunestack.config import BaseConfig
from tunestack.saved import Seat
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.base import Decoding
from tunestack.tasks.instruction import Instruction, InstructionOptions
from tunestack.tasks.responses import Prompts

NAMES, THINGS = ("Ada", "Ben", "Cleo", "Dan", "Eva"), ("apples", "books", "coins", "stamps")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.layers, options.hidden, options.records, options.max_new_tokens)
    lengths = bench.prompts.lengths
    threads = torch.get_num_threads()
    print(f"{len(lengths)} prompts of {lengths.min()} to {lengths.max()} tokens, {threads} threads")
    for beams in options.beams:
        measure(bench, beams, options.repeats)


class Bench:
    """The model, the prompts, and both sides."""

    def __init__(self, folder: Path, layers: int, hidden: int, records: int, new_tokens: int) -> None:
        config = tiny_configs(
            hidden, layers=layers, inner=4 * hidden, tokens=1024, vocabulary=300, key_value_heads=4
        )["llama"]
        path = folder / "llama.json"
        path.write_text(json.dumps({**config, "initializer_range": 0.05}))
        base = load_base(BaseConfig(model=f"random:{path}", dtype="float32"))
        task = Instruction(options=InstructionOptions(max_new_tokens=new_tokens))
        loaded = base.load_model(task.auto_class, task.model_config(base))
        self.model: Any = loaded.model
        self.stack = Stack(Workload(base, task, {}, "accuracy"), loaded)
        self.prompts = task.encode(base, {"instruction": problems(records)}, 512).prompts
        self.new_tokens = new_tokens
        self.ends = base.ends(self.model)

    def published(self, prompts: Prompts, beams: int) -> list[list[int]]:
        """Each record by itself, without a cache."""
        texts = []
        for row in prompts.input_ids:
            ids = torch.from_numpy(row)[None].to(self.model.device)
            written = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=beams,
                max_new_tokens=self.new_tokens,
                use_cache=False,
                eos_token_id=self.ends,
                pad_token_id=0,
            )[0, len(row) :].tolist()
            ended = [place for place, token in enumerate(written) if token in self.ends]
            texts.append(written[: ended[0]] if ended else written)
        return texts

    def ours(self, prompts: Prompts, beams: int) -> list[list[int]]:
        """All records together, with a cache."""
        return self.stack.generate([Seat()], prompts, Decoding(self.new_tokens, beams))[0]


def problems(count: int) -> list[str]:
    """Word problems like those of the sets of arithmetic reasoning."""
    random = np.random.default_rng(1)
    texts = []
    for _ in range(count):
        first, second = random.choice(NAMES, 2, replace=False)
        thing, (some, more) = random.choice(THINGS), random.integers(2, 99, 2)
        text = f"{first} has {some} {thing} and {second} gives {first} {more} more."
        texts.append(
            f"{text} How many {thing} does {first} have now?" + " Think." * int(random.integers(0, 8))
        )
    return texts


def measure(bench: Bench, beams: int, repeats: int) -> None:
    """Both sides in turn, after a few records to warm up."""
    sides = {"published": bench.published, "ours": bench.ours}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    few = replace(bench.prompts, input_ids=bench.prompts.input_ids[:3], lengths=bench.prompts.lengths[:3])
    for side in sides.values():
        side(few, beams)
    for repeat in range(repeats):
        texts = {}
        for name in sorted(sides, reverse=bool(repeat % 2)):
            started = time.process_time()
            texts[name] = sides[name](bench.prompts, beams)
            seconds[name].append(time.process_time() - started)
        differing = sum(a != b for a, b in zip(texts["published"], texts["ours"], strict=True))
        if differing:
            raise SystemExit(f"{differing} of {len(texts['ours'])} texts differ")
    ratios = [theirs / own for theirs, own in zip(seconds["published"], seconds["ours"], strict=True)]
    lengths = [len(text) for text in texts["ours"]]
    print(
        f"{beams} beam{'s' if beams > 1 else ''}: published {told(seconds['published'])} s, ours "
        f"{told(seconds['ours'])} s, ratio {told(ratios)}; {len(lengths)} equal texts of "
        f"{min(lengths)} to {max(lengths)} tokens"
    )


def told(values: list[float]) -> str:
    """The median, and the ends."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
