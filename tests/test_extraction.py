"""Answers out of text, against LLM-Adapters' published rules where these are meant to agree."""

from __future__ import annotations

import doctest
import re

import pytest

from tunestack.tasks import extraction
from tunestack.tasks.extraction import KINDS, find_choice, find_number, judge, kind_of


def published_number(text: str) -> float:
    """LLM-Adapters' rule: the last number, commas left out, anywhere."""
    return float(re.findall(r"-?\d+\.?\d*", text.replace(",", ""))[-1])


PLAIN = [
    "A: There were 7 crayons. Mary took 3 out, so now there are 7 - 3 = 4 crayons. The answer is 4.",
    "He has 12.50 left",
    "The answer is 1,234,567.",
    "It fell to -3 degrees.",
    "2 + 2 = 4",
    "first 1 then 0.625",
]


@pytest.mark.parametrize("text", PLAIN)
def test_numbers_are_found_as_published(text: str) -> None:
    assert float(find_number(text)) == published_number(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She paid $1,234.50", "1234.50"),
        ("-$5", "-5"),
        ("$ 7 in all", "7"),
        ("€3", "3"),
        ("10-4", "4"),  # a difference, and not minus four
        ("so .5 of it", ".5"),
        ("see section 7.5.1", "1"),
        ("so ...5", "5"),
        ("1e-05", "1e-05"),
        ("it is -2.5E+3 m", "-2.5E+3"),
        ("4e5f", "5"),
        ("either 3,4", "4"),  # two numbers: no group of three digits
        ("1,0000", "0000"),
        ("no number", ""),
        ("", ""),
        ("five", ""),
    ],
)
def test_numbers_in_other_dress(text: str, number: str) -> None:
    assert find_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Rationale: All even. The answer is (D).", "D"),
        ("the answer is B", "B"),
        ("Answer: C", "C"),
        ("A: A train leaves. The answer is (A) or rather the answer is (E).", "E"),
        ("I choose (B) over (C)", "C"),
        ("A train needs 5 hours", ""),
        ("A is right and so is nothing else", "A"),
        ("The answer is: B. Options (A) and (C) are wrong.", "B"),
        ("Answer: B. Option (A) is wrong.", "B"),
        ("**Answer**: B, not (A)", "B"),
        ("The answer is **B**, since (A) is too small.", "B"),
        ("Therefore, the answer is option C. (A) and (B) fail.", "C"),
        ("Option B is right", "B"),
        ("Option A fails, option B is right, as E shows.", "B"),
        ("I think C is correct.", "C"),
        ("E.", "E"),
        ("B", "B"),
        ("Because all are even", ""),
        ("A: There were 7", ""),
        ("", ""),
    ],
)
def test_choices(text: str, letter: str) -> None:
    assert find_choice(text) == letter


@pytest.mark.parametrize(
    ("kind", "text", "gold", "right"),
    [
        ("number", "The answer is 32.", "32.0", True),
        ("number", "The answer is 32.0009", "32", True),
        ("number", "The answer is 32.002", "32", False),
        ("number", "1,000", "1000", True),
        ("number", "nothing", "0", False),
        ("number", "It is 0.52 of 1", "1e0", True),
        ("number", "a share of 25 percent", "25%", True),
        ("number", "7 are left", "3 + 4 = 7, of 9\n#### 7", True),
        ("number", "9 are left", "3 + 4 = 7, of 9\n#### 7", False),
        ("true-false", "the correct answer is True", "true", True),
        ("true-false", "the correct answer is untrue", "true", False),
        ("true-false", "false, not true", "false", True),
        ("option", "the correct answer is answer3", "answer3", True),
        ("option", "answer1 or answer3", "answer3", False),
        ("option", "answer12", "answer1", False),
        ("option", "Ending4.", "ending4", True),
        ("option", "solution2", "solution2", True),
        ("text", " New  York. ", "new york", True),
        ("text", "", "x", False),
    ],
)
def test_verdicts(kind: str, text: str, gold: str, right: bool) -> None:
    assert judge(KINDS[kind], text, gold)[1] is right


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("4.0", "number"),
        ("-5", "number"),
        ("1,000", "number"),
        ("$3.50", "number"),
        ("25%", "number"),
        ("25 %.", "number"),
        ("5.", "number"),
        ("(-5)", "number"),
        ("1e-05", "number"),
        ("3 + 4 = <<3+4=7>>7 are left.\n#### 1,007", "number"),
        ("3/4", "text"),
        ("2, 3", "text"),
        ("B.", "choice"),
        ("D", "choice"),
        ("(B)", "choice"),
        ("false", "true-false"),
        ("answer5", "option"),
        ("option2", "option"),
        ("solution1", "option"),
        ("ending4", "option"),
        ("Paris", "text"),
        ("3 apples", "text"),
        ("F", "text"),
        ("answer6", "text"),
    ],
)
def test_kinds_of_gold_answers(gold: str, kind: str) -> None:
    assert kind_of(gold).name == kind
    assert judge(kind_of(gold), gold, gold)[1]


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(extraction).failed == 0
