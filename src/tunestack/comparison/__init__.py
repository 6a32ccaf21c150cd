"""What to run and in which order; statistics; the verdict."""
