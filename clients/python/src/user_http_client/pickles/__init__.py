"""Reads pickles of plain values. A pickle that names a class or a function is refused, and nothing is ever called."""

from .read import MAX_MEMORY, load, loads

__all__ = ["MAX_MEMORY", "load", "loads"]
