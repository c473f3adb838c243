"""The configuration: its schema (`defaults`), and reading one from a file and the command line (`loading`)."""

from configs.loading import load_cfg

__all__ = ["load_cfg"]
