"""Where the milliseconds go: stages, layers, percentiles, a trace and a report that adds up."""
