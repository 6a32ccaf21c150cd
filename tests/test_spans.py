"""Windows of long contexts, and the best spans in them."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunestack.errors import UserError
from tunestack.tasks.spans import Windows, best_spans, check_questions, encode_windows, null_scores

QUESTIONS = ["Where does the Aare rise?", "Who won  two prizes?", "What is 4 °C?", "Which 日本 city?"]
CONTEXTS = [
    "The river Aare rises in the Alps and flows through Bern, the capital.",
    "Marie Curie was born in Warsaw.\n\nShe won two Nobel Prizes   (1903 and 1911)!",
    "Ice floats, for water is densest at 4 °C; naïve, isn't it?",
    " Tokyo (東京) is the capital of 日本. 🐝 Bees live there, too.  ",
]
ANSWERS = ["the Alps", "two Nobel Prizes   (1903", "4 °C", "日本"]
SPANS = [
    (context.index(answer), context.index(answer) + len(answer)) for context, answer in zip(CONTEXTS, ANSWERS)
]
NAMES = [f"question {index}" for index in range(4)]


def wrapped(tokenizer: Tokenizer, first: str, last: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", cls_token=first, sep_token=last, unk_token="<unk>"
    )


def byte_level(trim: bool, prefix: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE as RoBERTa and GPT-2 have it: a space belongs to the word behind it.

    trim: whether offsets leave that space out. prefix: whether a text begins with one that is not there.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CONTEXTS + QUESTIONS, trainer)
    roberta = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 1), trim_offsets=trim, add_prefix_space=prefix
    )
    tokenizer.post_processor = roberta
    return wrapped(tokenizer, "<s>", "</s>")


def word_piece() -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it, lower case and accents stripped: texts become others, offsets stay."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CONTEXTS + QUESTIONS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return wrapped(tokenizer, "<s>", "</s>")


def metaspace() -> PreTrainedTokenizerFast:
    """Words with a mark for the space before them, as SentencePiece has them; no special tokens at all."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CONTEXTS + QUESTIONS, trainer)
    return wrapped(tokenizer, "<s>", "</s>")


TOKENIZERS = {
    "trimmed": byte_level(True, True),
    "untrimmed": byte_level(False, False),
    "with a space before": byte_level(False, True),
    "word pieces": word_piece(),
    "metaspace": metaspace(),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]


def encode(tokenizer: Any, max_length: int = 48, stride: int = 8, answers: Any = SPANS) -> Windows:
    return encode_windows(tokenizer, QUESTIONS, CONTEXTS, answers, max_length, stride, NAMES)


def text_of(windows: Windows, row: int, first: int, last: int) -> str:
    """What the tokens of a row stand for in the context."""
    example = windows.example[row]
    shift = windows.skipped[row] - windows.first[row]
    offsets = windows.offsets[example]
    return CONTEXTS[example][offsets[first + shift, 0] : offsets[last + shift, 1]]


def test_windows_are_those_of_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """The library's own overflowing windows, with the same stride."""
    longest = max(len(ids) for ids in tokenizer(QUESTIONS, add_special_tokens=False)["input_ids"])
    for room in (9, 14, 300):
        limit = longest + 4 + room
        ours = encode(tokenizer, limit, stride=4)
        theirs = tokenizer(
            QUESTIONS, CONTEXTS, truncation="only_second", max_length=limit, stride=4,
            return_overflowing_tokens=True,
        )  # fmt: skip
        assert [row.tolist() for row in ours.input_ids] == theirs["input_ids"]
        assert ours.example.tolist() == theirs["overflow_to_sample_mapping"]
        assert ours.lengths.tolist() == [len(row) for row in theirs["input_ids"]]
        for row in range(len(ours)):
            kinds = theirs.sequence_ids(row)
            assert ours.first[row] == kinds.index(1)
            assert ours.counts[row] == kinds.count(1)
        assert len(ours) == 4 if room == 300 else len(ours) > 4
        assert ours.truncated == 0


def test_answers_survive_the_way_to_tokens_and_back(tokenizer: PreTrainedTokenizerBase) -> None:
    """At word boundaries: exactly the answer, no space before it; in every window that holds it whole."""
    for stride in (0, 8):
        windows = encode(tokenizer, 40, stride)
        found = dict.fromkeys(range(4), 0)
        for row, (first, last) in enumerate(windows.labels):
            example = windows.example[row]
            if (first, last) == (0, 0):
                begin, end = windows.skipped[row], windows.skipped[row] + windows.counts[row]
                own = windows.offsets[example][begin:end]
                start, stop = SPANS[example]
                assert not (own[0, 0] <= start and stop <= own[-1, 1])
                continue
            assert text_of(windows, row, first, last) == ANSWERS[example]
            found[example] += 1
        assert stride == 0 or all(found.values())


def test_an_answer_within_a_word_gets_the_tokens_that_hold_it(tokenizer: PreTrainedTokenizerBase) -> None:
    """No token may begin there: the nearest ones around it do."""
    spans = [(start + 1, end - 1) if end - start > 2 else (start, end) for start, end in SPANS]
    windows = encode(tokenizer, 300, answers=spans)
    for row, (first, last) in enumerate(windows.labels):
        text = text_of(windows, row, first, last)
        assert CONTEXTS[row][slice(*spans[row])].strip() in text
        assert text in CONTEXTS[row]
        assert text in ANSWERS[row]


def test_spaces_around_an_answer_do_not_matter(tokenizer: PreTrainedTokenizerBase) -> None:
    spans = [(start - 1, end + (CONTEXTS[i][end] == " ")) for i, (start, end) in enumerate(SPANS)]
    assert encode(tokenizer, 300, answers=spans).labels.tolist() == encode(tokenizer, 300).labels.tolist()


def test_questions_without_an_answer_point_at_the_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = encode(tokenizer, 300, answers=[None, *SPANS[1:]])
    assert windows.labels[0].tolist() == [0, 0]
    assert (windows.labels[1:] > 0).all()
    assert encode(tokenizer, 300, answers=None).labels is None


def test_types_tell_questions_from_contexts() -> None:
    tokenizer = word_piece()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    windows = encode(tokenizer, 40)
    assert windows.token_type_ids is not None
    for ids, types, first in zip(windows.input_ids, windows.token_type_ids, windows.first, strict=True):
        assert types.tolist() == [0] * first + [1] * (len(ids) - first)


def test_what_leaves_no_room_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = [len(ids) for ids in tokenizer(QUESTIONS, add_special_tokens=False)["input_ids"]]
    others = tokenizer.num_special_tokens_to_add(pair=True)
    longest = int(np.argmax(lengths))
    limit = lengths[longest] + others
    for check in (
        lambda: encode(tokenizer, limit),
        lambda: check_questions(tokenizer, QUESTIONS, limit, NAMES),
    ):
        with pytest.raises(UserError) as caught:
            check()
        problem = caught.value.problems[0]
        assert problem.where == f"question {longest}"
        assert f"room for its context in {limit} tokens" in problem.expected
        assert f"one that takes {limit} with special tokens" in problem.found
    check_questions(tokenizer, QUESTIONS, limit + 1, NAMES)
    assert encode(tokenizer, limit + 1).counts[encode(tokenizer, limit + 1).example == longest].max() == 1
    with pytest.raises(UserError, match="15 more questions"):
        check_questions(tokenizer, QUESTIONS * 5, 4, NAMES * 5)


def test_contexts_without_text_are_named() -> None:
    with pytest.raises(UserError, match=r"question 1: expected a context with text, found ' '"):
        encode_windows(TOKENIZERS["trimmed"], ["Who?"] * 2, ["I.", " "], None, 32, 0, NAMES)


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="fast tokenizer"):
        check_questions(Slow(), QUESTIONS, 32, NAMES)  # type: ignore[arg-type]


def brute_force(
    windows: Windows, logits: np.ndarray[Any, Any], longest: int
) -> list[list[tuple[float, int, int]]]:
    """Every pair of tokens of every window in plain loops: score, start, end by example, best first."""
    found: list[dict[tuple[int, int], float]] = [{} for _ in windows.offsets]
    for row in range(len(windows)):
        example, first, skipped = windows.example[row], windows.first[row], windows.skipped[row]
        for begin in range(windows.counts[row]):
            for end in range(begin, min(begin + longest, windows.counts[row])):
                tokens = windows.offsets[example][[skipped + begin, skipped + end]]
                if (tokens[:, 0] == tokens[:, 1]).any():
                    continue
                place = (int(tokens[0, 0]), int(tokens[1, 1]))
                score = float(logits[row, first + begin, 0]) + float(logits[row, first + end, 1])
                found[example][place] = max(score, found[example].get(place, -np.inf))
    return [
        sorted(((score, *place) for place, score in one.items()), key=lambda each: -each[0]) for one in found
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(TOKENIZERS)),
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([40, 64]),
)
@hypothesis.example("metaspace", 0, 2, 3, 40)  # two tokens of one character are among the best of a window
def test_the_best_spans_are_those_of_all_spans(
    name: str, seed: int, longest: int, count: int, max_length: int
) -> None:
    windows = encode(TOKENIZERS[name], max_length)
    shape = (len(windows), int(windows.lengths.max()), 2)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    expected = brute_force(windows, logits.numpy(), longest)
    for many in (1, count):
        found = best_spans(windows, logits, longest, many)
        for example, own in enumerate(expected):
            mine = found.example == example
            told = list(zip(found.score[mine], found.start[mine], found.end[mine]))
            # Of equal scores in two windows, of one token or two of a character: any may come first.
            assert [score for score, _, _ in told] == [score for score, _, _ in own[: len(told)]]
            assert {(start, end) for _, start, end in told} <= {(start, end) for _, start, end in own}
            assert told[0][1:] == own[0][1:]
            assert len(told) <= many
            if many == 1:
                assert len(told) == 1


def test_no_answer_scores_as_in_its_lowest_window() -> None:
    windows = encode(TOKENIZERS["word pieces"], 40)
    logits = torch.randn(len(windows), int(windows.lengths.max()), 2)
    expected = [
        min(float(logits[row, 0].double().sum()) for row in np.flatnonzero(windows.example == example))
        for example in range(4)
    ]
    assert null_scores(windows, logits).tolist() == pytest.approx(expected)


def test_many_windows_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = encode(TOKENIZERS["trimmed"], 40)
    logits = torch.randn(len(windows), int(windows.lengths.max()), 2)
    whole = best_spans(windows, logits, 10, 5)
    monkeypatch.setattr("tunestack.tasks.spans._SCORES_AT_ONCE", 1)
    for ours, theirs in zip(best_spans(windows, logits, 10, 5), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
