"""Python in processes that know nothing of this one, without paying for torch's import in each.

They are forked from one that has imported what others wrote and takes seconds, and nothing of ours. That the
libraries are there says nothing about when they are imported: whoever asks that starts an interpreter.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SLOW = (
    *("accelerate", "bitsandbytes", "datasets", "optuna", "peft", "pydantic", "scipy.stats"),
    *("sklearn.linear_model", "torch", "transformers.modeling_utils", "transformers.trainer"),
)


@dataclass(frozen=True)
class Finished:
    """A process that ended."""

    code: int
    out: str
    err: str


def python(code: str, *arguments: object) -> Finished:
    """`python -c code arguments...`, offline."""
    return _run({"code": code, "arguments": ["-c", *map(str, arguments)]})


def tunestack(*arguments: object, cwd: Path | None = None) -> Finished:
    """`python -m tunestack arguments...`, offline."""
    return _run({"arguments": ["tunestack", *map(str, arguments)], "cwd": str(cwd or Path.cwd())})


def _run(order: dict[str, object]) -> Finished:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        try:
            print(json.dumps({**order, "out": str(out), "err": str(err)}), file=server.stdin, flush=True)
            code = int(server.stdout.readline())
        except BaseException:  # the next one must not read this one's code
            server.kill()
            _server.cache_clear()
            raise
        return Finished(code, out.read_text(), err.read_text())


@functools.cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve() -> None:
    """Fork a process for every line of the input and say with which code it ended."""
    with contextlib.redirect_stdout(sys.stderr):  # some say something when they are imported
        for name in SLOW:
            importlib.import_module(name)
    assert "tunestack" not in sys.modules
    gc.freeze()  # a child that collects garbage would touch, and so copy, every page
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(arguments: list[str], out: str, err: str, code: str = "", cwd: str = ".") -> None:
    """Run what was asked for; the interpreter ends after it, as it does after any program."""
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.chdir(cwd)
    sys.argv = arguments
    sys.path[0] = ""
    if code:
        exec(code, {"__name__": "__main__"})
    else:
        runpy.run_module("tunestack", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
