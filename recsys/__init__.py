"""Two-tower recommendations: from an interaction log to sealed, served embeddings."""

__version__ = "0.1.0"
