"""The model: its text, its pixels and its towers. `text` and `pixels` are free of torch."""
