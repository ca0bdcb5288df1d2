"""Averages over many facts: where a model keeps what it knows."""
