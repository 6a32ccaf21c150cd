"""Where stacks run, and where single candidates are measured."""
