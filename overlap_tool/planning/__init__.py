"""From a tile or a memory budget to the plans of a stage, and what they cost."""
