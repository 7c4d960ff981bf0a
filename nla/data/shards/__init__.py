"""Prepared activations on disk: the file format, the source of documents, rows, and their data module."""
