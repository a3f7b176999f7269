"""A run to look at: a page in a browser with its pictures, sound and results."""
