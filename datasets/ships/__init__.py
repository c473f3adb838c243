"""Procedural ships: their designs, and both sensors' pictures of them."""
