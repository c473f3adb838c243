"""The TransOSS re-identification model."""
