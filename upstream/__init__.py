"""Contributions to TorchRL: one folder each, and what applies, tests and writes them as patches."""
