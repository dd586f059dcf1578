"""The documents, examples, notebooks and the site: a job of its own, beside the library's tests."""

# A program that tests start.
collect_ignore = ["processes.py"]
