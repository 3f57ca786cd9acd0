"""`recsys tune`: searches a configuration's space on the validation part, and can be stopped at any time."""
