"""MR-RAG: multimodal relevance-aware retrieval-augmented generation for medical VQA."""
