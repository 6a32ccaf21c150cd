"""Results in, tables and pages out. Reads `Results` and the files they name, never a model."""

from tunestack.report.html import write_report
from tunestack.report.leaderboard import render_terminal, write_leaderboard

__all__ = ["render_terminal", "write_leaderboard", "write_report"]
