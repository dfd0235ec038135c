"""A text by which gemmtune recognises what an aiter tree can do: libtype is read from the row."""
