"""Where results go: JSON Lines, a live table, a list in memory."""
