"""What to run and in which order; statistics; the verdict."""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """This package, callable as `tunestack.compare(...)`.

    The function is called like the package, and Python puts a package into its parent once it is imported.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """`tunestack.api.compare`."""
        from tunestack.api import compare

        return compare(*arguments, **options)


sys.modules[__name__].__class__ = _Package
