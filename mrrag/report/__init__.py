"""What a person sees of a case or an experiment: JSON, HTML, plots, pictures.

Finished values go in; nothing here asks a model, searches, or knows gradio or torch.
"""
