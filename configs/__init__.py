"""The configuration: its keys (`defaults`, `schema`), reading one (`loading`), and opening a command with one (`command`)."""

from configs.loading import load_cfg

__all__ = ["load_cfg"]
