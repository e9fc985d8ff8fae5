"""Training: the bi-tower, the bundled model, α, β, γ, and the critical layers.

A leaf: only the command line imports it.
"""
