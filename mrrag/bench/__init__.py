"""Measured beside others: answering against generate(), search against brute force,
pictures against other readers of DICOM, a machine against what it should do.

A leaf: only the command line imports it.
"""
