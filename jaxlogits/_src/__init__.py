"""The rooms of the library; what is public is what ``jaxlogits`` itself names."""
