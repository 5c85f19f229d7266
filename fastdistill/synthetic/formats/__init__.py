"""Distilled images in the forms that other programs read."""
