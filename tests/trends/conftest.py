"""The toy of tests/evaluate: datasets made of lists."""

from tests.evaluate.conftest import toy

__all__ = ["toy"]
