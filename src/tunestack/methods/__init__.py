"""Fine-tuning methods: one file a family, behind the seam in `base.py`."""

# Before any module of ours: importing PEFT brings in the plug-in, which imports one of them.
import peft as _peft  # noqa: F401
