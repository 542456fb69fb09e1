"""Image files and containers, read and written a band of rows at a time."""
