"""Judging images by training fresh students on them."""
