"""Bottleneck adapters inside PEFT. Nothing is imported here: `import tunestack` must stay light."""
