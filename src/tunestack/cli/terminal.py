"""What commands print: results, and problems that users can mend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.markup import escape

from tunestack.errors import UserError

console = Console()
errors = Console(stderr=True)


@contextlib.contextmanager
def told_to_users() -> Iterator[None]:
    """Print what users can mend, and leave with exit code 2; everything else is a bug and shows as one."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except UserError as error:
        count = len(error.problems)
        errors.print(f"[bold red]{count} problem{'s' if count > 1 else ''}:[/]")
        for problem in error.problems:
            errors.print(f"\n[bold]{escape(problem.where)}[/]", highlight=False, soft_wrap=True)
            for word in ("expected", "found", "fix"):
                text = escape(str(getattr(problem, word)))
                errors.print(f"  [dim]{word + ':':<10}[/]{text}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def starting() -> contextlib.AbstractContextManager[object]:
    """A sign of life while what is needed is imported, which takes seconds; for a terminal alone."""
    return errors.status("Starting") if errors.is_terminal else contextlib.nullcontext()


def say(where: Console, text: str) -> None:
    """Print a line as it is: paths may hold what rich takes for markup, and are copied from the terminal."""
    where.print(text, markup=False, highlight=False, soft_wrap=True)
