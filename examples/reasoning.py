"""Tiny bases that reason, and a task that they must be adapted to: a test of generation that can fail.

    python examples/reasoning.py OUT

trains a decoder and an encoder-decoder from scratch, in a few minutes on two cores. They learn to solve word
problems of addition in one phrasing, and to add and subtract where a text says so plainly ("Compute 9
minus 4"). OUT then holds `decoder/`, `encoder-decoder/`, and `train.json`, `validation.json`, `test.json`:
problems of subtraction in another phrasing. A base gets under 10% of them right, for it adds; adapters must
make it subtract without a change to its weights:

    tunestack compare examples/reasoning.yaml --base OUT/decoder --train OUT/train.json \\
        --validation OUT/validation.json --test OUT/test.json
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

Record = dict[str, str]

NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gia",
    "Hal",
    "Ida",
    "Jon",
    "Kim",
    "Leo",
    "Mia",
    "Ned",
    "Ola",
    "Pia",
    "Ray",
    "Sue",
    "Tom",
    "Uma",
]
THINGS = [
    "apples",
    "books",
    "cards",
    "coins",
    "cups",
    "eggs",
    "flowers",
    "keys",
    "leaves",
    "marbles",
    "pens",
    "plums",
    "shells",
    "stamps",
    "stones",
]
LARGEST = 20
STEPS, BATCH, RATE = 1000, 64, 2e-3
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def addition(draw: random.Random) -> Record:
    """A problem as the bases know them."""
    name, thing, a, b = _draw(draw)
    text = f"{name} has {a} {thing}. {name} finds {b} more {thing}. How many {thing} does {name} have now?"
    return _record(text, a, "plus", b, a + b)


def subtraction(draw: random.Random, largest: int = LARGEST) -> Record:
    """A problem of another kind, in other words."""
    name, thing, a, b = _draw(draw, largest)
    a, b = max(a, b), min(a, b)
    text = f"There were {a} {thing} in a box. {name} took {b} of them. Say how many were left in the box."
    return _record(text, a, "minus", b, a - b)


def _draw(draw: random.Random, largest: int = LARGEST) -> tuple[str, str, int, int]:
    return draw.choice(NAMES), draw.choice(THINGS), draw.randint(1, largest), draw.randint(1, largest)


def _record(text: str, a: int, sign: str, b: int, result: int) -> Record:
    output = f"{a} {sign} {b} is {result}. The answer is {result}."
    return {"instruction": text, "input": "", "output": output, "answer": str(result)}


def lesson(draw: random.Random) -> tuple[str, str]:
    """A text to learn from, and how it goes on: half are word problems of addition."""
    if draw.random() < 0.5:
        record = addition(draw)
        return PROMPT.format(**record), record["output"]
    _, _, a, b = _draw(draw)
    a, b = max(a, b), min(a, b)
    sign, result = draw.choice([("plus", a + b), ("minus", a - b)])
    return f"Compute {a} {sign} {b}.\n", f"{a} {sign} {b} is {result}. The answer is {result}."


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, a number or a mark."""
    draw = random.Random(0)
    texts = [" ".join(lesson(draw)) for _ in range(4000)]
    texts += [" ".join(subtraction(draw).values()) for _ in range(4000)]
    texts.append(" ".join(str(number) for number in range(2 * LARGEST + 1)))
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    known = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.decoder = decoders.WordPiece(prefix="##")  # joins words by spaces, marks to the word before
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
    )


def make_decoder(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 0.8 million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def make_encoder_decoder(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """A T5 of 0.9 million parameters."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def for_decoder(tokenizer: PreTrainedTokenizerFast, lessons: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Text and what follows in one row; all of what follows is learned."""
    rows, labels = [], []
    for text, answer in lessons:
        before, after = tokenizer(text).input_ids, [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
        rows.append([*before, *after])
        labels.append([*[-100] * len(before), *after])
    ids = _padded(rows, tokenizer.pad_token_id)
    return {
        "input_ids": ids,
        "attention_mask": (ids != tokenizer.pad_token_id).long(),
        "labels": _padded(labels, -100),
    }


def for_encoder_decoder(
    tokenizer: PreTrainedTokenizerFast, lessons: list[tuple[str, str]]
) -> dict[str, Tensor]:
    """The text for the encoder, what follows for the decoder."""
    ids = _padded([tokenizer(text).input_ids for text, _ in lessons], tokenizer.pad_token_id)
    labels = [[*tokenizer(answer).input_ids, tokenizer.eos_token_id] for _, answer in lessons]
    return {
        "input_ids": ids,
        "attention_mask": (ids != tokenizer.pad_token_id).long(),
        "labels": _padded(labels, -100),
    }


def _padded(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


Batches = Callable[[PreTrainedTokenizerFast, list[tuple[str, str]]], dict[str, Tensor]]


def pretrain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batches: Batches, steps: int = STEPS
) -> Iterator[tuple[int, float]]:
    """Train on fresh lessons each step; yields the step and its loss."""
    draw = random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    model.train()
    for step in range(steps):
        batch = batches(tokenizer, [lesson(draw) for _ in range(BATCH)])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step + 1, float(loss)
    model.eval()


def write_records(folder: Path, *, largest: int = LARGEST, **counts: int) -> None:
    """Files of problems of subtraction, no problem in two of them, numbers from 1 to the largest."""
    draw = random.Random(2)
    seen: set[str] = set()
    for name, count in counts.items():
        records: list[Record] = []
        while len(records) < count:
            record = subtraction(draw, largest)
            if record["instruction"] not in seen:
                seen.add(record["instruction"])
                records.append(record)
        (folder / f"{name}.json").write_text(json.dumps(records, indent=1))


def main(out: str) -> None:
    """Train both bases and write the records."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    kinds: dict[str, tuple[Any, Batches]] = {
        "decoder": (make_decoder, for_decoder),
        "encoder-decoder": (make_encoder_decoder, for_encoder_decoder),
    }
    for name, (make, batches) in kinds.items():
        model = make(tokenizer)
        for step, loss in pretrain(model, tokenizer, batches):
            if step % 100 == 0:
                print(f"{name}: step {step} of {STEPS}, loss {loss:.4f}", flush=True)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_records(folder, train=1000, validation=100, test=200)


if __name__ == "__main__":
    main(*sys.argv[1:])
