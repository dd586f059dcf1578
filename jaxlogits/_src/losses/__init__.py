"""Losses and divergences of logits."""
