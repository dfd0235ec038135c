"""The package that gemmtune looks for."""
