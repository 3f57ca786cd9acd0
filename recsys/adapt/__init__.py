"""Adapting a sentence encoder to one shop: what is consumed together is read as near."""
