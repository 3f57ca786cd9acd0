"""Rules that hold for one list: caps, quotas, diversity and freshness; see docs/rules.md."""

from recsys.rules.arranging import Arranged, arrange
from recsys.rules.candidates import Arrangeable
from recsys.rules.said import Cap, Freshness, Quota, RuleError, Rules

__all__ = ["Arrangeable", "Arranged", "Cap", "Freshness", "Quota", "RuleError", "Rules", "arrange"]
