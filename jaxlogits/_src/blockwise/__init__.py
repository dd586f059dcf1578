"""Functions of rows without the arrays between."""
