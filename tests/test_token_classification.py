"""Token classification: chunks against seqeval, words and their tokens, data, loss, what is saved."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

import fresh
import oracle
import tiny
import tunestack
from task_samples import SAMPLES, TAGGED
from tunestack.comparison.statistics import summarize
from tunestack.config import DataConfig
from tunestack.data import TextData
from tunestack.data.chunks import Scheme, is_prefixed, mixed_tags
from tunestack.data.tagged import load_tagged, padded_tags
from tunestack.data.words import EncodedWords, encode_words
from tunestack.errors import UserError
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.token_classification import TokenClassification

SCHEMES = {
    "IOB": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "IOBES": ["O", *(f"{part}-{kind}" for part in "BIES" for kind in ("PER", "LOC-X"))],
    "untyped": ["B", "I", "O"],
}

# Chunks


def padded(rows: list[list[int]]) -> Any:
    return padded_tags({"tags": rows})


def split_of(rows: list[list[int]]) -> dict[str, Any]:
    return {"tokens": [[f"w{place}" for place in range(len(row))] for row in rows], "tags": rows}


@st.composite
def tagged(draw: Any) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """A scheme, gold tags and given ones, any order of tags; half of the given ones are the gold ones."""
    names = SCHEMES[draw(st.sampled_from(sorted(SCHEMES)))]
    tag = st.integers(0, len(names) - 1)
    gold = draw(st.lists(st.lists(tag, min_size=1, max_size=9), min_size=1, max_size=6))
    given = [[draw(tag) if draw(st.booleans()) else one for one in row] for row in gold]
    return names, gold, given


@given(tagged())
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_metrics_are_seqevals(case: tuple[list[str], list[list[int]], list[list[int]]]) -> None:
    names, gold, given = case
    task = TokenClassification(names)
    ours = task.scores(split_of(gold), padded(given))
    theirs, told = ([[names[tag] for tag in row] for row in rows] for rows in (gold, given))
    options: dict[str, Any] = {"zero_division": 0}
    assert ours["f1"] == pytest.approx(f1_score(theirs, told, **options))
    assert ours["precision"] == pytest.approx(precision_score(theirs, told, **options))
    assert ours["recall"] == pytest.approx(recall_score(theirs, told, **options))
    if any(tag != names.index("O") for rows in (gold, given) for row in rows for tag in row):
        report = classification_report(theirs, told, output_dict=True, **options)
        assert ours["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
        for kind in task.scheme.types:
            expected = report[kind]["f1-score"] if kind in report else 0.0
            assert ours[f"f1_{kind}"] == pytest.approx(expected)
    flat = [(a, b) for row, other in zip(gold, given, strict=True) for a, b in zip(row, other, strict=True)]
    assert ours["accuracy"] == pytest.approx(sum(a == b for a, b in flat) / len(flat))


@given(tagged())
@settings(max_examples=100, deadline=None)
def test_chunks_are_seqevals_entities(case: tuple[list[str], list[list[int]], list[list[int]]]) -> None:
    names, gold, _ = case
    scheme = Scheme(names)
    chunks = scheme.chunks(padded(gold))
    ours: list[list[tuple[str, int, int]]] = [[] for _ in gold]
    for sentence, first, stop, kind in zip(chunks.sentence, chunks.first, chunks.stop, chunks.type):
        ours[sentence].append((scheme.types[kind], int(first), int(stop) - 1))
    assert ours == [get_entities([names[tag] for tag in row]) for row in gold]


def test_chunks_by_hand() -> None:
    names = ["O", "B-X", "I-X", "L-X", "U-X", "I-Y"]
    chunks = Scheme(names).chunks(padded([[1, 2, 3, 4, 0, 2], [5, 2, 1, 1]]))
    found = list(zip(*(part.tolist() for part in (chunks.sentence, chunks.first, chunks.stop, chunks.type))))
    assert found == [
        (0, 0, 3, 0),
        (0, 3, 4, 0),
        (0, 5, 6, 0),
        (1, 0, 1, 1),
        (1, 1, 2, 0),
        (1, 2, 3, 0),
        (1, 3, 4, 0),
    ]


def test_without_prefixes_every_word_is_a_chunk() -> None:
    task = TokenClassification(["DET", "NOUN", "O"])
    gold, given = [[0, 1, 1], [2, 1]], padded([[0, 1, 0], [2, 1]])
    scores = task.scores(split_of(gold), given)
    assert scores["f1"] == scores["precision"] == scores["recall"] == 0.75
    assert scores["accuracy"] == 0.8
    assert scores["f1_NOUN"] == pytest.approx(0.8)
    assert not is_prefixed(["NN", "PRP$", "-LRB-", "O"])
    assert "entities" not in task.told(split_of(gold), given)
    assert mixed_tags(["B-PER", "MISC", "O"]) == ["MISC"]


def test_intervals_are_those_of_resampling_sentences_one_by_one() -> None:
    random = np.random.default_rng(4)
    names = SCHEMES["IOB"]
    gold = [random.integers(5, size=random.integers(2, 12)).tolist() for _ in range(120)]
    answers = padded([[t if random.random() < 0.8 else int(random.integers(5)) for t in row] for row in gold])
    task, split = TokenClassification(names), split_of(gold)
    summaries = summarize(task.answers(split, answers[None]))
    whole = task.scores(split, answers)
    draws = []
    for rows in random.integers(120, size=(400, 120)):
        own = {"tags": [gold[row] for row in rows]}
        width = padded_tags(own).shape[1]
        draws.append(task.scores(own, answers[rows][:, :width]))
    assert set(summaries) == set(whole)
    for metric, summary in summaries.items():
        error = float(np.std([one[metric] for one in draws]))
        assert summary.mean == pytest.approx(whole[metric], abs=1e-6)
        assert summary.interval.high - summary.interval.low == pytest.approx(2 * 1.98 * error, rel=0.15), (
            metric
        )


# Words and their tokens


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cases, drops control characters, cuts words into letters and numbers: BERT's ways."""
    vocabulary = {
        token: index for index, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh!"])
    }
    vocabulary |= {f"##{letter}": len(vocabulary) + index for index, letter in enumerate("abcdefgh")}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def assert_every_word_once(encoded: EncodedWords, sentences: list[list[str]]) -> None:
    """The rows of a sentence hold its words one after the other."""
    next_word = [0] * len(sentences)
    for sentence, begin, firsts in zip(encoded.sentence, encoded.begin, encoded.firsts, strict=True):
        assert begin == next_word[sentence]
        next_word[sentence] += len(firsts)
    assert next_word == [len(words) for words in sentences]


def test_first_tokens_are_those_of_word_ids() -> None:
    tokenizer = word_tokenizer()
    sentences = [["ab", "c!d", "A"], ["zzz", "h"], ["abcdefgh"]]
    encoded = encode_words(tokenizer, sentences, [[0, 1, 2], [3, 4], [5]], 32)
    theirs = tokenizer(sentences, is_split_into_words=True)
    for row, firsts in enumerate(encoded.firsts):
        assert encoded.input_ids[row].tolist() == theirs["input_ids"][row]
        ids = theirs.word_ids(row)
        assert firsts.tolist() == [ids.index(word) for word in range(len(sentences[row]))]
    assert [labels.tolist() for labels in encoded.labels] == [[0, 1, 2], [3, 4], [5]]
    assert encoded.truncated == 0


def test_words_that_the_tokenizer_drops_are_read_as_unknown() -> None:
    tokenizer = word_tokenizer()
    encoded = encode_words(tokenizer, [["a", "\u200b", "b", "\u200b"], ["\u200b"], []], None, 32)
    assert [ids.tolist() for ids in encoded.input_ids] == [[1, 4, 3, 5, 3, 2], [1, 3, 2], [1, 2]]
    assert [firsts.tolist() for firsts in encoded.firsts] == [[1, 2, 3, 4], [1], []]


@given(st.integers(0, 2**32), st.integers(4, 14))
@settings(max_examples=60, deadline=None)
def test_every_word_is_read_whatever_the_length_of_rows(seed: int, limit: int) -> None:
    random = np.random.default_rng(seed)
    tokenizer = word_tokenizer()
    letters = [*"abcdefgh!z", "\u200b"]
    sentences = [
        ["".join(random.choice(letters, random.integers(1, 9))) for _ in range(random.integers(1, 9))]
        for _ in range(4)
    ]
    tags = [list(range(len(words))) for words in sentences]
    encoded = encode_words(tokenizer, sentences, tags, limit)
    assert_every_word_once(encoded, sentences)
    assert encoded.lengths.max() <= limit
    assert (np.concatenate(encoded.firsts) > 0).all()
    several = np.bincount(encoded.sentence) > 1
    assert encoded.truncated == several.sum()
    for row, firsts in enumerate(encoded.firsts):
        assert (np.diff(firsts) > 0).all()
        assert encoded.labels[row].tolist() == list(
            range(encoded.begin[row], encoded.begin[row] + len(firsts))
        )
    for row, other in pairwise(
        range(len(encoded))
    ):  # a row that another one follows could not take its words
        if encoded.sentence[row] == encoded.sentence[other]:
            assert encoded.lengths[row] == limit


@pytest.mark.parametrize("kind", ["roberta", "llama 3", "llama 2", "xlm-roberta"])
def test_tokenizers_that_mark_spaces_see_those_between_words(kind: str) -> None:
    """Tokens are those of the whole text, and every word's first one is found."""
    space = "Ġ" if kind in ("roberta", "llama 3") else "▁"
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet(), "▁", "é"})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    merges = [(space, "a"), (f"{space}a", "b"), ("c", "d")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if kind == "roberta":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        ends = ("</s>", 2), ("<s>", 1)
        tokenizer.post_processor = processors.RobertaProcessing(
            *ends, trim_offsets=True, add_prefix_space=True
        )
    elif kind == "llama 3":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind == "llama 2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    words = ["ab", "cd", "ab", "é", "ab!"]
    encoded = encode_words(fast, [words], None, 64)
    assert encoded.input_ids[0].tolist() == fast(" ".join(words))["input_ids"]
    found = fast.convert_ids_to_tokens(encoded.input_ids[0][encoded.firsts[0]].tolist())
    beginning = "a" if kind == "llama 3" else f"{space}ab"  # it marks no space before the first word
    assert found == [beginning, space, f"{space}ab", space, f"{space}ab"]


def test_slow_tokenizers_are_refused(tmp_path: Path) -> None:
    class Slow:
        is_fast = False

    base = tiny.random_base(tmp_path, "bert")
    base.tokenizer = Slow()  # type: ignore[assignment]
    with pytest.raises(UserError, match="fast tokenizer"):
        TokenClassification(tiny.TAGS).check_base(base, TAGGED, 64, 96)


# Data

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

BRUSSELS NNP B-NP B-LOC
"""


def load(train: Path, **fields: Any) -> TextData:
    return load_tagged(DataConfig(train=str(train), **fields))


def problems(*arguments: Any, **fields: Any) -> str:
    with pytest.raises(UserError) as error:
        load(*arguments, **fields)
    return str(error.value)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sentences_of(data: TextData) -> dict[int, list[tuple[str, str]]]:
    return {
        row: [(word, data.label_names[tag]) for word, tag in zip(tokens, tags, strict=True)]
        for split in data.splits().values()
        for tokens, tags, row in zip(split["tokens"], split["tags"], split["row"], strict=True)
    }


EXPECTED = {
    0: [("EU", "B-ORG"), ("rejects", "O"), ("German", "B-MISC")],
    1: [("Peter", "B-PER"), ("Blackburn", "I-PER")],
    2: [("BRUSSELS", "B-LOC")],
}


def test_conll_files_lists_and_text_mean_the_same(tmp_path: Path) -> None:
    conll = tmp_path / "train.txt"
    conll.write_text(CONLL)
    assert sentences_of(load(conll)) == EXPECTED
    tabs = tmp_path / "tabs.conll"
    tabs.write_text("# id = 3\n" + CONLL.replace(" ", "\t").rstrip("\n"))
    assert sentences_of(load(tabs)) == EXPECTED
    rows = [{"words": [w for w, _ in s], "ner": [t for _, t in s]} for s in EXPECTED.values()]
    columns = {"tokens": "words", "tags": "ner"}
    assert sentences_of(load(write(tmp_path / "lists.jsonl", rows), columns=columns)) == EXPECTED
    joined = [{name: " ".join(values) for name, values in row.items()} for row in rows]
    assert sentences_of(load(write(tmp_path / "text.jsonl", joined), columns=columns)) == EXPECTED
    names = ["O", "B-ORG", "B-MISC", "B-PER", "I-PER", "B-LOC"]
    ids = [{**row, "ner": [names.index(tag) for tag in row["ner"]]} for row in rows]
    path = write(tmp_path / "ids.jsonl", ids)
    numbered = load(path, columns=columns, labels=names)
    assert sentences_of(numbered) == EXPECTED
    assert numbered.label_names == tuple(names)
    assert "Name them in id order" in problems(path, columns=columns)


def test_lines_that_are_left_out_are_told(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("tokens,tags\nAnna runs,B-PER O\nshort\nBen sleeps,B-PER O\nDogs bark,O O\n")
    data = load(path, skip_bad_rows=True)
    assert sorted(sentences_of(data)) == [0, 1, 2]
    assert f"{path}: 1 malformed lines are left out, such as line 3." in data.warnings


def test_lines_of_other_lengths_are_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text("a O\nb O\n\nc\nd X O\n")
    told = problems(path)
    assert "train.conll line 4: expected 2 columns, found 1." in told
    assert "train.conll line 5: expected 2 columns, found 3." in told


def test_what_is_wrong_is_told_by_record(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"tokens": ["a", "b"], "tags": ["O", "B-X"]},
        {"tokens": ["a", "b"], "tags": ["O"]},
        {"tokens": ["a", 3], "tags": ["O", "O"]},
        {"tokens": ["a"], "tags": None},
        {"tokens": ["a"], "tags": ["B X"]},
        {"tokens": ["a"], "tags": 5},
    ]
    told = problems(write(tmp_path / "bad.jsonl", rows))
    assert "a list with int values in 1 of 6 rows: 2 " in told
    assert "none in 1 of 6 rows: 3 " in told
    assert "one with a space in it, in 1 of 6 rows: 4 " in told
    del rows[2]
    told = problems(write(tmp_path / "bad.jsonl", rows))
    assert "2 words and 1 tags in row 1; so in 1 of 5 rows: 1 " in told
    assert "none: words and tags are read, found 'x'" in problems(tmp_path / "bad.jsonl", text="x")
    assert "data.columns.token: expected tokens or tags" in problems(
        tmp_path / "bad.jsonl", columns={"token": "x"}
    )
    mixed = write(tmp_path / "mixed.jsonl", [{"tokens": ["a", "b"], "tags": ["B-PER", "MISC"]}])
    assert "'MISC' beside tags with a prefix" in problems(mixed)


def test_sentences_without_words_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"tokens": w, "tags": ["O" if n % 2 else "B-X" for n in range(len(w))]}
        for w in (["a"], [], ["b", "c"], ["d"])
    ]
    data = load(write(tmp_path / "train.jsonl", rows))
    assert sorted(sentences_of(data)) == [0, 2, 3]
    assert any("no words in 1 of 4 rows: 1 (0 is the first). They are left out." in w for w in data.warnings)


def test_tags_that_training_lacks(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 3)
    other = write(tmp_path / "other.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "B-Y"]}])
    assert "'B-Y' in 1 of 1 rows: 0 " in problems(train, validation=str(other))
    data = load(train, validation=str(other), labels=["O", "B-X", "B-Y"])
    assert "The train split has no word tagged B-Y: that cannot be learned." in data.warnings
    assert "The validation split has no word tagged B-X: that is not measured there." in data.warnings
    assert any("have a text that is also in train" in warning for warning in data.warnings)


def test_our_split_keeps_equal_sentences_together(tmp_path: Path) -> None:
    rows = [{"tokens": ["s", str(n // 4)], "tags": ["O", "B-X"]} for n in range(40)]
    data = load(write(tmp_path / "train.jsonl", rows))
    sides = [{tokens[1] for tokens in split["tokens"]} for split in (data.train, data.validation)]
    assert not sides[0] & sides[1]


# Loss and answers


def test_the_loss_is_transformers_own(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    task = TokenClassification(tiny.TAGS)
    encoded = task.encode(base, TAGGED["train"], 64)
    loaded = base.load_model(task.auto_class, task.model_config(base))
    rows = np.arange(7)
    targets = task.targets(encoded, rows)
    output = loaded.model(**task.batch([(encoded, rows)], 0, [0]), labels=targets)
    torch.testing.assert_close(task.loss(output.logits, targets, None), output.loss)
    assert (targets >= 0).sum() == sum(map(len, TAGGED["train"]["tokens"][:7]))
    longer = torch.nn.functional.pad(output.logits, (0, 0, 0, 5), value=9.0)
    torch.testing.assert_close(task.loss(longer, targets, None), output.loss)


def test_long_sentences_are_answered_whole_and_their_loss_is_the_mean_over_words(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    task = TokenClassification(tiny.TAGS)
    loaded = base.load_model(task.auto_class, task.model_config(base))
    stack = Stack(Workload(base, task, TAGGED, "f1"), loaded)
    slot = stack.open(tiny.trial(base, "one", 1))
    oracle.disturb(slot)
    encoded = task.encode(base, TAGGED["validation"], 12)
    assert encoded.truncated > 0
    found = stack.answers([slot], encoded)[0]
    gold = padded_tags(TAGGED["validation"])
    assert ((found.given >= 0) == (gold >= 0)).all()
    total, words = 0.0, 0
    for row in range(len(encoded)):
        rows = np.asarray([row])
        batch = task.batch([(encoded, rows)], 0, [0])
        stack.host.rows.set([slot.span(0, 1, training=False)])
        with torch.no_grad():
            logits = stack.host.model(**batch).logits
        total += float(task.loss(logits, task.targets(encoded, rows), None)) * len(encoded.firsts[row])
        words += len(encoded.firsts[row])
        own = logits[0, encoded.firsts[row]].argmax(-1)
        begin = encoded.begin[row]
        assert found.given[encoded.sentence[row], begin : begin + len(own)].tolist() == own.tolist()
    assert found.loss == pytest.approx(total / words, abs=1e-5)


def test_what_is_told_of_a_sentence() -> None:
    task = TokenClassification(tiny.TAGS)
    split: dict[str, Any] = {"tokens": ["Anna  lives in", ["Dover"]]}
    told = task.told(split, padded([[0, 2, 3], [1]]))
    assert told["prediction"] == ["B-A I-A O", "B-D"]
    assert json.loads(told["entities"][0]) == [{"type": "A", "first": 0, "stop": 2, "text": "Anna lives"}]
    assert task.shown(split, 0) == "Anna lives in"


# What is saved


LOAD = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification
place = json.load(open(sys.argv[1]))
results = {}
for name, adapter in place["adapters"].items():
    model = AutoModelForTokenClassification.from_pretrained(place["base"], num_labels=4, dtype="float32")
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        results[name] = model(**{k: torch.tensor(v) for k, v in place["batch"].items()}).logits.tolist()
assert "tunestack" not in sys.modules
print(json.dumps(results))
"""


def test_saved_adapters_load_in_plain_peft(tmp_path: Path) -> None:
    saved = tiny.save_base(tmp_path, "bert")
    base = tiny.open_base(str(saved))
    task = TokenClassification(tiny.TAGS)
    encoded = task.encode(base, TAGGED["test"], 64)
    rows = np.arange(9)
    batch = task.batch([(encoded, rows)], 0, [0])
    expected, adapters = {}, {}
    for method, fields in {"lora": {}, "prompt": {"num_virtual_tokens": 3}, "ia3": {}}.items():
        loaded = base.load_model(task.auto_class, task.model_config(base))
        stack = Stack(Workload(base, task, TAGGED, "f1"), loaded)
        slot = stack.open(tiny.trial(base, "one", 1, method, **fields))
        slot.config.task_type = task.peft_type
        oracle.disturb(slot)
        oracle.save(tmp_path / method, stack, slot)
        adapters[method] = str(tmp_path / method)
        leading = slot.span(0, 9, training=False).leading
        with torch.no_grad():
            padded_batch = task.batch([(encoded, rows)], 0, [leading])
            tokens = padded_batch["input_ids"].shape[1]
            stack.host.rows.set([slot.span(0, 9, training=False)], tokens)
            expected[method] = stack.host.model(**stack.host.arguments(padded_batch)).logits[:, leading:]
    place = {
        "base": str(saved),
        "adapters": adapters,
        "batch": {name: tensor.tolist() for name, tensor in batch.items()},
    }
    (tmp_path / "asked.json").write_text(json.dumps(place))
    done = fresh.python(LOAD, tmp_path / "asked.json")
    assert done.code == 0, done.err
    for method, logits in json.loads(done.out.splitlines()[-1]).items():
        theirs = torch.tensor(logits)[:, -tokens_of(batch) :]
        for row, length in enumerate(encoded.lengths):
            torch.testing.assert_close(
                theirs[row, :length], expected[method][row, :length], rtol=1e-4, atol=1e-5, msg=method
            )


def tokens_of(batch: dict[str, torch.Tensor]) -> int:
    return int(batch["input_ids"].shape[1])


def test_a_whole_model_names_its_tags(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    task = TokenClassification(tiny.TAGS)
    loaded = base.load_model(task.auto_class, task.model_config(base))
    loaded.model.save_pretrained(tmp_path / "whole")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "whole")
    assert again.config.id2label == dict(enumerate(tiny.TAGS))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of one adapter."""
    folder = tmp_path_factory.mktemp("run")
    base = tiny.save_base(folder, "bert")
    given = SAMPLES["token-classification"].write(folder)["data"]
    tunestack.compare(
        given.pop("train"),
        task="token-classification",
        bases={"model": str(base), "dtype": "float32", "device_map": "cpu"},
        methods=["lora"],
        seeds=1,
        training={"epochs": 1, "learning_rate": 5e-3, "max_length": 14},
        measure_costs=False,
        output=folder / "run",
        progress=False,
        **given,
    )
    return folder / "run"


def test_words_text_and_conll_files_are_predicted_alike(run: Path, tmp_path: Path) -> None:
    sentences = TAGGED["test"]["tokens"]
    predictor = tunestack.load(run)
    expected = predictor.predict(sentences)
    assert predictor.predict([" ".join(words) for words in sentences]) == expected
    assert [len(tags.split()) for tags in expected] == [len(words) for words in sentences]
    files = {
        "lists.jsonl": "".join(json.dumps({"tokens": words, "id": [7]}) + "\n" for words in sentences),
        "text.csv": "tokens\n" + "".join(" ".join(words) + "\n" for words in sentences),
        "words.conll": "".join("\n".join(words) + "\n\n" for words in sentences),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        target = tmp_path / f"{name}.csv"
        assert list(predictor.predict_file(tmp_path / name, target)) == [len(sentences)]
        frame = pd.read_csv(target, dtype=str, keep_default_na=False)
        assert frame["prediction"].tolist() == expected
        kept = [value if name == "text.csv" else " ".join(json.loads(value)) for value in frame["tokens"]]
        assert kept == [" ".join(words) for words in sentences]
        assert all(isinstance(json.loads(entities), list) for entities in frame["entities"])


def test_what_cannot_be_predicted_is_told(run: Path, tmp_path: Path) -> None:
    predictor = tunestack.load(run)
    with pytest.raises(UserError, match="expected texts, found 5 at place 1"):
        predictor.predict([["a"], 5])  # type: ignore[list-item]
    path = write(tmp_path / "bad.jsonl", [{"tokens": ["a"]}, {"tokens": []}, {"tokens": ["a", None]}])
    with pytest.raises(UserError) as error:
        predictor.predict_file(path, tmp_path / "out.csv").__next__()
    assert "no value in 1 of 3 rows: 1 " in str(error.value)
    assert "a list with no value in 1 of 3 rows: 2 " in str(error.value)


def test_the_report_says_how_many_sentences_have_several_rows(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    base = tiny.open_base(results["candidates"][0]["base"])
    task = TokenClassification(tiny.TAGS)
    long = sum(task.encode(base, split, 14).truncated for split in TAGGED.values())
    assert long > 0
    assert any(f"{long} texts are read in rows of 14 tokens" in said for said in results["data"]["warnings"])
