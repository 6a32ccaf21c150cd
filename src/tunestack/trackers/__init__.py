"""Experiment trackers: what happens in a comparison or a sweep, told to W&B, MLflow or TensorBoard."""
