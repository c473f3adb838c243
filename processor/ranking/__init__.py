"""Ranking a gallery for each query, and what the figures of a ranking tell."""
