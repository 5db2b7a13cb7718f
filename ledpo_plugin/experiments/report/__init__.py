"""From measured runs to the sections of a report."""
