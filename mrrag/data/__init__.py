"""What lies on disk: data sets, questions, pictures, and what a report's words say.

A file of a data set, a DICOM file or a sentence comes in; plain values go out. Nothing
here knows a model, a vector or a score, and nothing imports torch.
"""
