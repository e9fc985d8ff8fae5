"""Readers of data sets: one file for each data set or family of layouts.

Each reader takes a path and returns a corpus; :mod:`mrrag.data.corpus` lists them by layout.
"""
