"""Ground: files, names, statistics and records. Imports nothing of the plugin."""
