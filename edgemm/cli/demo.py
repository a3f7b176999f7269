"""`edgemm demo`: the whole path on the model that ships with edgemm."""

from __future__ import annotations


def demo() -> None:
    """x"""
