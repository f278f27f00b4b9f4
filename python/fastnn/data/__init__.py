"""Image data for the trainer: the MNIST reader, the bundled digits, and batches without a loop per sample."""

from fastnn.data.batches import Batches, normalise
from fastnn.data.dataset import DataError, Dataset
from fastnn.data.idx import read_idx
from fastnn.data.load import load

__all__ = ["Batches", "DataError", "Dataset", "load", "normalise", "read_idx"]
