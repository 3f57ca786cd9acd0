"""The command `recsys`: every stage of the way from a log to live recommendations."""

from __future__ import annotations
