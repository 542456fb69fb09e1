"""Which span every op computes at each step, and what that costs."""
