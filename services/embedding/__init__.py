"""The embedding service: text and image towers behind a dynamic batcher."""
