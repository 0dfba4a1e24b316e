"""Ingest: bucket events to Celery tasks to vectors, and the proof that nothing is missing."""
