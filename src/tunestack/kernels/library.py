"""The C functions of this package, compiled for the processor at hand when they are first asked for.

Without a C compiler, or on a processor or system where they do not compile, there are none, and whoever asks
does without: nothing depends on them but speed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

OFF = "TUNESTACK_KERNELS"
"""Set to 0, this environment variable turns them off."""
LANES = 16
"""How many numbers the longest vectors have; what is worked on row by row has to be a multiple."""
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-strict-aliasing", "-fopenmp", "-shared", "-fPIC")
_DEFINED = {torch.float32: (), torch.bfloat16: ("-DPAIRS",)}
_SECONDS = 120
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int32}
_ARGUMENTS = {
    "attention_forward": "ppp",
    "attention_backward": "pppppp",
    "absorbed_forward": "pppp",
    "absorbed_backward": "ppppppppp",
    "head_products": "pnnnpnnpi",
    "dense_works": "",
    "dense_lay_out": "pnnp",
    "dense": "pnnpnppi",
    "lowrank_low": "p",
    "lowrank_forward": "ppp",
    "lowrank_backward": "pppppp",
    "norm_forward": "ppnnppfpppi",
    "norm_backward": "ppppnnppi",
    "gelu": "pnppi",
    "times": "ppnpi",
    "keep_mask": "pnnnnn",
}
"""What each takes: pointers, counts, floats, numbers of threads."""


def has_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there are functions for matrices of this type there."""
    return device.type == "cpu" and _library(dtype) is not None


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The functions for matrices of this type. Raises RuntimeError where there are none."""
    functions = _library(dtype)
    if functions is None:
        raise RuntimeError(f"there are no compiled kernels for {dtype} here")
    return functions


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    # Compilers for Windows align the stack too coarsely for long vectors, Apple's has no OpenMP.
    unfit = sys.platform in ("win32", "darwin") or os.environ.get(OFF) == "0"
    if unfit or dtype not in _DEFINED or compiler is None:
        return None
    try:
        functions = _loaded(compiler, (*_FLAGS, *_DEFINED[dtype]))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("Going on without compiled kernels: %s", getattr(error, "stderr", None) or error)
        return None
    for name, kinds in _ARGUMENTS.items():
        getattr(functions, name).argtypes = [_KINDS[kind] for kind in kinds]
    functions.lowrank_low.restype = ctypes.c_int64
    return functions


def at(tensor: Tensor, dtype: torch.dtype) -> int:
    """Where a tensor's numbers lie, for a C function. Raises ValueError where they are not what it takes."""
    if tensor.dtype != dtype or not tensor.is_contiguous() or not tensor.is_cpu:
        raise ValueError(
            f"a contiguous {dtype} tensor on the processor must come here, not {described(tensor)}"
        )
    return tensor.data_ptr()


def described(tensor: Tensor) -> str:
    """What a tensor is, for messages."""
    return f"{tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"


def _loaded(compiler: str, flags: Sequence[str]) -> ctypes.CDLL:
    """The library, made anew where what it is made of, or for, has changed, or its file is no good."""
    sources = sorted(Path(__file__).parent.glob("*.[ch]"))
    parts = [path.read_bytes() for path in sources] + [" ".join((compiler, *flags)).encode(), _processor()]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    target = _folder() / f"{name}.so"
    try:
        return ctypes.CDLL(str(_own(target)))
    except OSError:
        _compile(compiler, flags, [str(path) for path in sources if path.suffix == ".c"], target)
    return ctypes.CDLL(str(_own(target)))


def _compile(compiler: str, flags: Sequence[str], units: Sequence[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, target.name)
        command = [compiler, *flags, *units, "-lm", "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        made.replace(target)  # whole or not at all, for other processes look for it, too


def _folder() -> Path:
    """Where compiled libraries are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "tunestack" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _own(folder)


def _own(path: Path) -> Path:
    """The path, in which nobody else may write: what lies there is run. Raises OSError where others may, or
    where there is none.
    """
    found = path.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} must belong to the user, and nobody else may write there")
    return path


def _processor() -> bytes:
    """What tells this processor from others that share the folder."""
    kind = platform.machine().encode()
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return kind + platform.processor().encode()
    telling = (b"model name", b"flags", b"Features", b"CPU ", b"isa", b"uarch")
    return b"\n".join([kind, *sorted({line for line in lines if line.startswith(telling)})])
