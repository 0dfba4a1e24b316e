"""How well a text tower finds images: measured, with intervals, compared and reported."""
