"""Prepared activations on disk: the file format, the data source, rows and their reader."""
