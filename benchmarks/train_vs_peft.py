"""Time the same LoRA training with tunestack and with PEFT + transformers.Trainer.

  a    PEFT + Trainer, fp32, random batches: as articles set it
  b    PEFT + Trainer at its best: bf16=True, train_sampling_strategy="group_by_length"
  dry  b without the base's own dropout, which tunestack leaves off by default
  t1   tunestack, one trial alone
  tN   tunestack, N trials (seeds) in one stack; seconds a trial

All of them: the same base, rows and split (train_test_split, 0.8, seed 42), LoRA of rank 8 (alpha 16, no
LoRA dropout) on query and value with a trained classification head, AdamW (fused), learning rate 5e-4,
falling linearly to 0 (the Trainer's default; `--schedule constant` is what the articles set), weight decay
0.001, gradient norm clipped at 0.3, batch 8, class-weighted cross-entropy, the same number of steps and
threads. Every measurement is a process of its own; they alternate within a repeat, and each repeat has its
own seed, the same for all (a stack of N has N seeds).

What is timed: from before the first training step to after the last one; choosing and collating batches,
forward, backward, clipping, optimiser, schedule. Not: imports, loading, tokenising, building the optimiser,
evaluation. Peak memory is that of the whole process up to the last training step, libraries included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import common
import numpy as np
from common import Measurement, Settings

PEERS = ("a", "b", "dry")


def measure(contender: str, settings: Settings) -> Measurement:
    """In a process of its own: train one contender."""
    return measure_peer(contender, settings) if contender in PEERS else common.measure_stack(settings)


def measure_peer(contender: str, settings: Settings, evaluation: str = "no") -> Measurement:
    """PEFT + Trainer, written as its users write it. evaluation: when it evaluates while it trains."""
    import pandas as pd
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig, TaskType, get_peft_model
    from sklearn.metrics import f1_score
    from sklearn.utils.class_weight import compute_class_weight
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    disable_progress_bars()
    set_seed(settings.seeds[0])
    tokenizer = AutoTokenizer.from_pretrained(settings.location, add_prefix_space=True)
    frame = pd.read_csv(settings.data)[[settings.text, settings.label]].set_axis(["text", "label"], axis=1)
    rows = Dataset.from_pandas(frame).class_encode_column("label")
    split = rows.train_test_split(train_size=common.TRAIN_SIZE, seed=common.SPLIT_SEED)
    train = split["train"].select(range(settings.part(len(split["train"]))))
    labels = np.asarray(train["label"][:])
    class_weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    digest = common.digest(train["text"][:], train["label"][:])

    def tokenise(examples: dict[str, list[str]]) -> Any:
        return tokenizer(examples["text"], truncation=True, max_length=common.MAX_LENGTH)

    train = train.map(tokenise, batched=True, remove_columns=["text"])
    validation = split["test"].select(range(settings.evaluated or len(split["test"])))
    validation = validation.map(tokenise, batched=True, remove_columns=["text"])

    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.location,
        num_labels=len(class_weights),
        dtype=torch.float32,
        **settings.overrides,
        **(without_dropout if contender == "dry" else {}),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
    )
    model = get_peft_model(model, lora)

    class WeightedTrainer(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            logits = outputs.logits
            weight = torch.tensor(class_weights, device=logits.device, dtype=logits.dtype)
            loss = torch.nn.functional.cross_entropy(logits, labels, weight)
            return (loss, outputs) if return_outputs else loss

    def score(answers: Any) -> dict[str, float]:
        # Grouping by length reorders evaluation as well: the labels come in the predictions' order.
        average = "binary" if len(class_weights) == 2 else "macro"
        labels, predicted = np.asarray(answers.label_ids), np.asarray(answers.predictions).argmax(-1)
        return {"f1": float(f1_score(labels, predicted, average=average))}

    class Stopwatch(TrainerCallback):
        seconds = 0.0
        peak_memory_bytes = 0

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            common.wait_for(settings.device)
            self.seconds += time.perf_counter() - self.started
            self.peak_memory_bytes = common.peak_memory_bytes(settings.device)

    stopwatch = Stopwatch()
    best = contender != "a"
    with tempfile.TemporaryDirectory() as folder:
        trainer = WeightedTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                learning_rate=settings.learning_rate,
                lr_scheduler_type=settings.schedule,
                weight_decay=common.WEIGHT_DECAY,
                max_grad_norm=common.MAX_GRAD_NORM,
                per_device_train_batch_size=common.BATCH_SIZE,
                per_device_eval_batch_size=64,
                num_train_epochs=settings.epochs,
                bf16=best,
                train_sampling_strategy="group_by_length" if best else "random",
                seed=settings.seeds[0],
                use_cpu=settings.device == "cpu",
                eval_strategy=evaluation,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[stopwatch],
            compute_metrics=score,
        )
        trainer.train()
        if evaluation == "no":
            trainer.evaluate()
        scores = [entry["eval_f1"] for entry in trainer.state.log_history if "eval_f1" in entry]
    return Measurement(
        trials=1,
        seeds=settings.seeds,
        seconds=stopwatch.seconds,
        steps=trainer.state.global_step,
        peak_memory_bytes=stopwatch.peak_memory_bytes,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        f1=[max(scores)],  # of the best epoch, as trials are judged in a sweep
        class_weights=torch.tensor(class_weights, dtype=torch.float32).tolist(),
        data=digest,
    )


def run_all(options: argparse.Namespace) -> dict[str, list[Measurement]]:
    """Every repeat: each peer, followed by one trial alone, then the stack."""
    width = len(options.seeds)
    stack = f"t{width}"
    order = [name for peer in options.peers for name in (peer, "t1")] + [stack] * (width > 1)
    runs: dict[str, list[Measurement]] = {name: [] for name in dict.fromkeys(order)}
    for repeat in range(options.repeats):
        own = [options.seeds[repeat % width]]
        for name in order:
            settings = common.settings_of(options, options.seeds if name == stack else own)
            found = common.in_process(__file__, name, settings, options.threads)
            runs[name].append(found)
            seconds = found.seconds / found.trials / options.epochs
            print(f"repeat {repeat + 1} {name}: {seconds:.2f} s an epoch, F1 {found.f1}", file=sys.stderr)
        check_equal_work(runs)
    return runs


def check_equal_work(runs: dict[str, list[Measurement]]) -> None:
    """Raise RuntimeError unless all did the same: rows, class weights, steps, trained parameters."""
    for field in ("data", "class_weights", "steps", "trainable_parameters"):
        found = {name: getattr(values[-1], field) for name, values in runs.items()}
        first, *others = found.values()
        for other in others:
            equal = np.allclose(other, first, rtol=1e-5) if field == "class_weights" else other == first
            if not equal:
                raise RuntimeError(f"not the same work: {field} differs: {found}")


def ratios(above: list[Measurement], below: list[Measurement], position: int) -> list[float]:
    """Seconds a trial of one contender over those of another, repeat by repeat.

    position: which of several measurements within a repeat to take of the contender that has several.
    """
    repeats = min(len(above), len(below))
    pairs = zip(_one_a_repeat(above, repeats, position), _one_a_repeat(below, repeats, position), strict=True)
    return [(one.seconds / one.trials) / (other.seconds / other.trials) for one, other in pairs]


def _one_a_repeat(values: list[Measurement], repeats: int, position: int) -> list[Measurement]:
    each = len(values) // repeats
    return values[position % each :: each]


def rows_of(options: argparse.Namespace, runs: dict[str, list[Measurement]]) -> list[list[str]]:
    """The table's rows: a contender each."""
    ours = [name for name in runs if name not in PEERS]
    rows = []
    for position, (name, values) in enumerate(runs.items()):
        per_epoch = [value.seconds / value.trials / options.epochs for value in values]
        against = [
            common.spread(ratios(values, runs[our], position), 2) if our != name else "1" for our in ours
        ]
        memory = common.megabytes(values)
        by_seed = [pair for value in values for pair in zip(value.seeds, value.f1, strict=True)]
        scores = [score for _, score in dict.fromkeys(by_seed)]
        rows.append(
            [
                name,
                common.spread(per_epoch, 2),
                *against,
                f"{memory:.0f}",
                *(f"{memory / common.megabytes(runs[our]):.2f}" for our in ours),
                f"{np.mean(scores):.4f} ({min(scores):.4f}-{max(scores):.4f}, {len(scores)})",
            ]
        )
    return rows


def main() -> None:
    """Measure and print the table."""
    common.answer_if_measuring(measure)
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", type=lambda text: text.split(","), default=["a", "b"], help="of a, b, dry")
    parser.add_argument(
        "--seeds", type=common.numbers, default=[1, 2, 3, 4], help="of the trials in the stack"
    )
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args()
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"--peers: {', '.join(sorted(unknown))} is none of {', '.join(PEERS)}")
    runs = run_all(options)
    ours = [name for name in runs if name not in PEERS]
    header = [
        "",
        "training seconds an epoch, a trial",
        *(f"seconds / {name}" for name in ours),
        "peak MB",
        *(f"MB / {name}" for name in ours),
        "validation F1 (range, runs)",
    ]
    print(common.describe_run(options, runs))
    print(f"Median (smallest-largest) of {options.repeats} repeats; ratios are taken within a repeat.\n")
    common.print_table(header, rows_of(options, runs))
    if options.json:
        common.write_json(options.json, options, runs)


if __name__ == "__main__":
    main()
