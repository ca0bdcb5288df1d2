"""Editing facts: keys, values and the second moment that weighs them."""
