"""Rendered buildings with Chinese captions: a data set that needs no download."""
