"""Write a base with random weights in a known model's shape, and texts for it.

Times and memory do not ask what weights know, so this stands in for models that are not at hand:

    python benchmarks/random_base.py --shape roberta-large --out shapes/roberta-large
    python benchmarks/train_vs_peft.py --base shapes/roberta-large --data shapes/roberta-large/texts.csv \\
        --label label --device cuda --dtype bfloat16 --peers b --seeds $(seq -s, 32)

Every text has the same number of tokens. Its label says whether more of its words are from the first half of
the vocabulary, which can be learned, if not from weights like these in a few steps.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

WORDS = 1000
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""In the order of their ids, which are RoBERTa's."""
SHAPES: dict[str, PretrainedConfig] = {
    "roberta-large": RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
    ),
    "mistral-7b": MistralConfig(pad_token_id=1, bos_token_id=0, eos_token_id=2),  # by its defaults
    "small": RobertaConfig(
        vocab_size=1200,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=66,
        type_vocab_size=1,
    ),
}


def make_tokenizer(encoder: bool) -> PreTrainedTokenizerFast:
    """A word a token; an encoder's texts stand between <s> and </s>, a decoder's behind <s>."""
    names = [*SPECIAL.values(), *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if encoder else "<s> $A",
        special_tokens=[(name, index) for index, name in enumerate(SPECIAL.values())],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def write_texts(path: Path, rows: int, words: int, seed: int = 0) -> None:
    """A CSV file with the columns `text` and `label`."""
    chance = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            numbers = [chance.randrange(WORDS) for _ in range(words)]
            first = sum(number < WORDS // 2 for number in numbers)
            writer.writerow([" ".join(f"w{number}" for number in numbers), int(first > words / 2)])


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for base and texts")
    parser.add_argument("--rows", type=int, default=1000, help="of texts; four fifths are trained on")
    parser.add_argument("--tokens", type=int, default=40, help="of each text, special ones included")
    options = parser.parse_args()
    config = SHAPES[options.shape]
    encoder = isinstance(config, RobertaConfig)
    torch.manual_seed(0)
    kind = AutoModelForMaskedLM if encoder else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.bfloat16)
    options.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.out)
    make_tokenizer(encoder).save_pretrained(options.out)
    write_texts(options.out / "texts.csv", options.rows, options.tokens - (2 if encoder else 1))


if __name__ == "__main__":
    main()
