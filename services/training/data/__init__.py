"""Image-text pairs: read from several formats, checked, split by group."""
