"""Native instructions for torch's ops: one file for each kind of op."""

from fastnn.capture.lowering import indexing, joining, normalisation

__all__ = ["indexing", "joining", "normalisation"]
