"""Chips on disk to batches."""
