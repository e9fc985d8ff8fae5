"""The web page. The only place that imports gradio; it calls the pipeline and draws."""
