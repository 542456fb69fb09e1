"""Entropy coding in pieces, and in bands of rows."""
