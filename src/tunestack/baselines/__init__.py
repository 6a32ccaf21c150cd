"""Candidates that train no transformer: what a fine-tuned model has to beat."""
