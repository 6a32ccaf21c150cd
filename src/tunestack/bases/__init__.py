"""Loading a frozen pretrained model and knowing its layout."""

from tunestack.bases.base import Base, load_base

__all__ = ["Base", "load_base"]
