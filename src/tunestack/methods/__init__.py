"""Fine-tuning methods: one file a family, behind the seam in `base.py`."""
