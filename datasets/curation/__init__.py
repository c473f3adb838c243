"""Data sets in the making: checks, faults, near-duplicates, importing from tables, splitting by ship."""
