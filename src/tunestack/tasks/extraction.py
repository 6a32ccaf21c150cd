"""Answers out of generated text, and whether they are the right ones.

What counts as an answer follows LLM-Adapters' evaluation (Hu et al., 2023): of numbers the last one in the
text, within 0.001; of words such as `answer3` the first. Where our rules differ, docs/reasoning.md says it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

TOLERANCE = 0.001
"""By how much a number may differ from the gold one, as in LLM-Adapters' evaluation."""

_NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d+(?:\.\d+)?|(?<![\d.])\.\d+)(?:[eE][-+]?\d+\b)?")
_CURRENCY = re.compile(r"[$€£¥]\s?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRUTH = re.compile(r"\b(true|false)\b", re.IGNORECASE)
_OPTION = re.compile(r"\b(answer[1-5]|option[12]|solution[12]|ending[1-4])(?!\d)", re.IGNORECASE)
_CHOICES = (
    # "answer: B", "the answer is option (B)"
    re.compile(r"(?i:\banswer\s*(?:is|:)[\s:]*(?:(?:option|choice)\s+)?)\(?([A-E])\b"),
    # "(B)", "option B"
    re.compile(r"(?:\((?=[A-E]\))|(?i:\b(?:option|choice)\s+))([A-E])\b"),
    # A letter by itself, but not what begins a line of reasoning ("A: ..."), or an article ("A train ...").
    re.compile(r"(?<![\w'])([B-E]|A(?!\s+(?!(?:is|and|or|because|since)\b)[a-z]))\b(?![':])"),
)


@dataclass(frozen=True)
class Kind:
    """A kind of answers.

    find: the answer in a text, empty where there is none. same: whether a found answer is the gold one.
    example: what such an answer looks like.
    """

    name: str
    find: Callable[[str], str]
    same: Callable[[str, str], bool]
    example: str

    def gold(self, text: str) -> bool:
        """Whether a gold answer is of this kind: nothing but such an answer."""
        last = final(text)
        return self.find(last) != "" and (self.name == "text" or _is_whole(last, self.find(last)))


def find_number(text: str) -> str:
    """The last number in a text, perhaps with an exponent.

    A minus after a digit is a difference, not a sign; commas before groups of three digits and signs of
    currencies are left out.

    >>> find_number("7 - 3 = 4, so she paid $1,234.50.")
    '1234.50'
    >>> find_number("about -2e-05 of them")
    '-2e-05'
    """
    found = _NUMBER.findall(_plain(text))
    return found[-1] if found else ""


def find_choice(text: str) -> str:
    """The letter of a choice, A to E: the last that is called the answer, else the last in brackets or called
    an option, else the last that stands by itself. Asterisks, which make it bold, do not count.

    >>> find_choice("A: Both are even. The answer is (D).")
    'D'
    >>> find_choice("The answer is: **B**, since (A) is too small.")
    'B'
    """
    plain = text.replace("*", "")
    for pattern in _CHOICES:
        found = pattern.findall(plain)
        if found:
            return str(found[-1])
    return ""


def find_truth(text: str) -> str:
    """The first `true` or `false`."""
    return _first(_TRUTH, text)


def find_option(text: str) -> str:
    """The first word such as answer3, option1, solution2, ending4."""
    return _first(_OPTION, text)


def final(gold: str) -> str:
    """What a gold answer ends with where reasoning stands before it, as in GSM8K: "... #### 42"."""
    return gold.rpartition("####")[2].strip()


def find_text(text: str) -> str:
    """The whole text, case, spacing and a full stop at the end left out."""
    return " ".join(text.split()).removesuffix(".").casefold()


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1].lower() if found else ""


def _plain(text: str) -> str:
    return _THOUSANDS.sub("", _CURRENCY.sub("", text))


def _is_whole(text: str, found: str) -> bool:
    """Whether there is nothing beside what was found; brackets, a full stop and % are nothing."""
    return _plain(text).strip().lstrip("(").rstrip(").% ").casefold() == found.casefold()


def _same_number(found: str, gold: str) -> bool:
    return abs(float(found) - float(gold)) <= TOLERANCE


def _same_text(found: str, gold: str) -> bool:
    return found == gold


KINDS = {
    kind.name: kind
    for kind in (
        Kind("number", find_number, _same_number, "12.5"),
        Kind("choice", find_choice, _same_text, "B"),
        Kind("true-false", find_truth, _same_text, "true"),
        Kind("option", find_option, _same_text, "answer2"),
        Kind("text", find_text, _same_text, "Paris"),
    )
}
"""In the order in which `auto` tries them; `text` takes everything."""


def kind_of(gold: str) -> Kind:
    """What kind of answer a gold one is."""
    return next((kind for kind in KINDS.values() if kind.gold(gold)), KINDS["text"])


def judge(kind: Kind, text: str, gold: str) -> tuple[str, bool]:
    """The answer in a text, empty where there is none, and whether it is right."""
    found = kind.find(text)
    return found, found != "" and kind.same(found, kind.find(final(gold)))


def counted(golds: Iterable[str]) -> str:
    """How many gold answers are of which kind, for people.

    >>> counted(["3", "4.0", "B"])
    'number (2), choice (1)'
    """
    counts = Counter(kind_of(gold).name for gold in golds)
    return ", ".join(f"{name} ({count:,})" for name, count in counts.most_common())
