"""What a model is made of: its stages, those that a class computes inline, closed loops, range coding."""
