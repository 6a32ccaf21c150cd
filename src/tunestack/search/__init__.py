"""Sweeps: what is searched, and the study that remembers what was tried."""
