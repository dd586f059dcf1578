"""From logits to a class: shaped, truncated, drawn."""
