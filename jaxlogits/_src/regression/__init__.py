"""Log-odds that are linear in features."""
