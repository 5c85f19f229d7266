"""What a run shows: pictures of its images, curves of its metrics and one HTML page."""
