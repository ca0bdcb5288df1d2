"""The second moment of keys, C: collected from text, kept in files, solved against."""
