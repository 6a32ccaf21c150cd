"""The command line: parses, calls one function, prints."""

from tunestack.cli.app import main

__all__ = ["main"]
