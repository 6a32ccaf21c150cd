"""What goes wrong on the user's side: every error says what was expected, what was found, how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MANY = 20
"""Known names; of more than these nobody wants to read, who has only misspelt one."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user gave.

    where: the place, in the user's words (``data.text``, ``tweets.csv line 12``).
    """

    where: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}. {self.fix}"


class UserError(Exception):
    """Input that cannot work. Carries every `Problem` found, raised before anything expensive starts.

    The command line prints the problems and exits with code 2.
    """

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class Problems:
    """Collects problems, so that a user sees all of them at once.

    >>> problems = Problems()
    >>> problems.add("seeds", expected="at least 1", found="0", fix="Give a positive number.")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    ...
    tunestack.errors.UserError: seeds: expected at least 1, found 0. Give a positive number.
    """

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def add(self, where: str, *, expected: str, found: str, fix: str) -> None:
        """Note one problem; once, however often it is found."""
        self._note(Problem(where, expected, found, fix))

    def extend(self, error: UserError) -> None:
        """Take over the problems of an error that was caught."""
        for problem in error.problems:
            self._note(problem)

    @contextmanager
    def collecting(self, where: str = "") -> Iterator[None]:
        """Note the problems of a user's error, with the place they are in, and go on after the block."""
        try:
            yield
        except UserError as error:
            for problem in error.problems:
                self._note(replace(problem, where=f"{where}: {problem.where}") if where else problem)

    def attempt(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """Call; on a user's error note its problems and give None."""
        with self.collecting():
            return function(*arguments, **named)
        return None

    def __bool__(self) -> bool:
        return bool(self._problems)

    def raise_if_any(self) -> None:
        """Raise one `UserError` with all the problems noted so far, if there are any."""
        if self._problems:
            raise UserError(*self._problems)

    def _note(self, problem: Problem) -> None:
        if problem not in self._problems:
            self._problems.append(problem)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the nearest known names, and all of them unless these are many and one is near.

    >>> did_you_mean("texts", ["text", "target"])
    "Did you mean 'text'? Known: target, text."
    >>> did_you_mean("lr", ["learning_rate", "r"])
    "Did you mean 'learning_rate'? Known: learning_rate, r."
    >>> did_you_mean("f99", [f"f{number}" for number in range(99)])
    "Did you mean 'f98' or 'f97'?"
    """
    names = sorted(set(known))
    if not names:
        return "None is known."
    short = [other for other in names if name and name.lower() in _short(other)]
    near = short[:2] or difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    near.sort(key=lambda other: sorted(other) != sorted(name))  # letters that changed places come first
    hint = "Did you mean " + " or ".join(repr(candidate) for candidate in near) + "?" if near else ""
    told = f"Known: {', '.join(names)}." if len(names) <= MANY or not near else ""
    return " ".join(filter(None, [hint, told]))


def _short(name: str) -> set[str]:
    """What people write for a name of several words: its initials, or the last of them."""
    words = name.split("_")
    return {"".join(word[:1] for word in words), words[-1]} if len(words) > 1 else set()
