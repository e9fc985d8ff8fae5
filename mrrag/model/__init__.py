"""The language model: checkpoint, prompt, attention, steering (IFA), decoding.

Texts, features and one λ a report go in; answers and what was attended to come out.
Nothing here knows where a report came from or how its λ was found.
"""
