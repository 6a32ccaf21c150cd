"""Data: load, describe, split."""

from tunestack.data.describe import Description, describe, render
from tunestack.data.labels import balanced_class_weights
from tunestack.data.load import TextData, load_text_data
from tunestack.data.split import split_train_validation
from tunestack.data.tables import iter_rows

__all__ = [
    "Description",
    "TextData",
    "balanced_class_weights",
    "describe",
    "iter_rows",
    "load_text_data",
    "render",
    "split_train_validation",
]
