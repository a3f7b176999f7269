"""Frames, clocks, windows, the scheduler, sources and sinks: everything between a device and an engine."""
