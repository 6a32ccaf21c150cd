"""`python -m tunestack` is `tunestack`."""

from tunestack.cli import main

main()
