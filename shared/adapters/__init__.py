"""The ports, fulfilled: object store, vector store, encoder."""
