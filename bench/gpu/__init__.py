"""What is measured where a GPU is at hand; see run.sh."""
