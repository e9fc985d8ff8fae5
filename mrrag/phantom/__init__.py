"""The phantom population: synthetic radiographs, reports and questions, all from a seed.

This room knows nothing of the method, the data readers or the models.
"""
