"""What PyTorch has no fast operators for, in C, compiled where it runs and when it is first used."""
