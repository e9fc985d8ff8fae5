"""Measured beside others: answering against generate(), search against brute force,
pictures against other readers of DICOM.

A leaf: only the command line imports it.
"""
