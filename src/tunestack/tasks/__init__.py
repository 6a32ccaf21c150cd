"""What is solved: heads, losses, metrics, and how predictions are decoded."""
