"""The model: its text, its pixels and its towers. Only `towers` imports torch."""
