"""Locked-image text tuning (LiT): only the text tower learns, against cached image features."""
