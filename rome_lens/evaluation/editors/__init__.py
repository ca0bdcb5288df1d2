"""Editors that an evaluation compares: by name, or of your own."""
