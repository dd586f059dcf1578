"""Rows and arrays that are split over a mesh."""
