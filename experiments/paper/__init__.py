"""What arXiv 2502.11085 publishes: its numbers, its names for data sets, the commands behind each row."""
