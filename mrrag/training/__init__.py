"""All that is learnt: the bi-tower, the bundled model, α, β, γ, the critical layers.

A leaf: only the command line imports it.
"""
