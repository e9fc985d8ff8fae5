"""Vectors and documents: encoders, the knowledge base, and MCR, which ranks by them.

A query goes in, documents with scores come out. Nothing here knows a prompt or a
language model.
"""
