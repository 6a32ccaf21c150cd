"""Trials that share a frozen base, trained together: slots, the one training loop, checkpoints."""
