"""Load a plan and run it."""
