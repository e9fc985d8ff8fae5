"""The phantom world: synthetic radiographs, their reports and questions, all from a seed.

It knows nothing of the method, the data readers or the models.
"""
