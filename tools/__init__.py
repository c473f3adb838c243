"""Commands beside training and testing: `python -m tools.<name> --help`."""
